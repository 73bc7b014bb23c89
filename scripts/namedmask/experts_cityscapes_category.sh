#!/usr/bin/env bash
# Experts of NamedMask for Cityscapes: all categories, or those named.
# Train: bash scripts/namedmask/experts_cityscapes_category.sh [CATEGORY ...] [key=value ...]
# Evaluate one: bash scripts/namedmask/experts_cityscapes_category.sh WEIGHTS single_category=CATEGORY [key=value ...]
exec bash "$(dirname "$0")/../run.sh" --experts configs/namedmask/cityscapes_category.yaml "$@"
