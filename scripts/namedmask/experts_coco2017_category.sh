#!/usr/bin/env bash
# Experts of NamedMask for COCO2017: all categories, or those named.
# Train: bash scripts/namedmask/experts_coco2017_category.sh [CATEGORY ...] [key=value ...]
# Evaluate one: bash scripts/namedmask/experts_coco2017_category.sh WEIGHTS single_category=CATEGORY [key=value ...]
exec bash "$(dirname "$0")/../run.sh" --experts configs/namedmask/coco2017_category.yaml "$@"
