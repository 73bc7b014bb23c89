#!/usr/bin/env bash
# ZUTIS ViT-B/32 on COCO2017 val. Train: bash scripts/zutis/coco2017_vit_b_32.sh [key=value ...]; evaluate: the same with WEIGHTS first.
exec bash "$(dirname "$0")/../run.sh" configs/zutis/coco2017_vit_b_32.yaml "$@"
