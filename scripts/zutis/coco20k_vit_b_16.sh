#!/usr/bin/env bash
# ZUTIS ViT-B/16 on COCO-20K (evaluation only): bash scripts/zutis/coco20k_vit_b_16.sh WEIGHTS [key=value ...]
exec bash "$(dirname "$0")/../run.sh" --evaluate-only configs/zutis/coco20k_vit_b_16.yaml "$@"
