#!/usr/bin/env bash
# ZUTIS ViT-B/32 on ImageNet-S919. Train: bash scripts/zutis/imagenet_s919_vit_b_32.sh [key=value ...]; evaluate: the same with WEIGHTS first.
exec bash "$(dirname "$0")/../run.sh" configs/zutis/imagenet_s919_vit_b_32.yaml "$@"
