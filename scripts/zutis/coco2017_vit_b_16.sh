#!/usr/bin/env bash
# ZUTIS ViT-B/16 on COCO2017 val. Train: bash scripts/zutis/coco2017_vit_b_16.sh [key=value ...]; evaluate: the same with WEIGHTS first.
exec bash "$(dirname "$0")/../run.sh" configs/zutis/coco2017_vit_b_16.yaml "$@"
