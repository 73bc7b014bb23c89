#!/usr/bin/env bash
# NamedMask on VOC2012 val with experts' masks.
# Train: bash scripts/namedmask/voc_val_n500_cp2_sr10100_ex.sh [key=value ...]; evaluate: the same with WEIGHTS first.
exec bash "$(dirname "$0")/../run.sh" configs/namedmask/voc_val_n500_cp2_ex.yaml "$@"
