#!/usr/bin/env bash
# NamedMask on Cityscapes val with experts' masks.
# Train: bash scripts/namedmask/cityscapes_val_n500_cp2_sr10100_ex.sh [key=value ...]; evaluate: the same with WEIGHTS first.
exec bash "$(dirname "$0")/../run.sh" configs/namedmask/cityscapes_val_n500_cp2_ex.yaml "$@"
