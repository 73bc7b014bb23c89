#!/usr/bin/env bash
# Experts of NamedMask for VOC2012: all categories, or those named.
# Train: bash scripts/namedmask/experts_voc_category.sh [CATEGORY ...] [key=value ...]
# Evaluate one: bash scripts/namedmask/experts_voc_category.sh WEIGHTS single_category=CATEGORY [key=value ...]
exec bash "$(dirname "$0")/../run.sh" --experts configs/namedmask/voc_category.yaml "$@"
