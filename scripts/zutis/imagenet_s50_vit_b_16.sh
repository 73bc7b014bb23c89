#!/usr/bin/env bash
# ZUTIS ViT-B/16 on ImageNet-S50. Train: bash scripts/zutis/imagenet_s50_vit_b_16.sh [key=value ...]; evaluate: the same with WEIGHTS first.
exec bash "$(dirname "$0")/../run.sh" configs/zutis/imagenet_s50_vit_b_16.yaml "$@"
