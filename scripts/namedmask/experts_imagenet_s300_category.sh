#!/usr/bin/env bash
# Experts of NamedMask for ImageNet-S300: all categories, or those named.
# Train: bash scripts/namedmask/experts_imagenet_s300_category.sh [CATEGORY ...] [key=value ...]
# Evaluate one: bash scripts/namedmask/experts_imagenet_s300_category.sh WEIGHTS single_category=CATEGORY [key=value ...]
exec bash "$(dirname "$0")/../run.sh" --experts configs/namedmask/imagenet_s300_category.yaml "$@"
