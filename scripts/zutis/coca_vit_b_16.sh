#!/usr/bin/env bash
# ZUTIS ViT-B/16 on CoCA. Train: bash scripts/zutis/coca_vit_b_16.sh [key=value ...]; evaluate: the same with WEIGHTS first.
exec bash "$(dirname "$0")/../run.sh" configs/zutis/coca_vit_b_16.yaml "$@"
