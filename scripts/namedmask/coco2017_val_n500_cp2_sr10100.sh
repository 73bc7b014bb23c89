#!/usr/bin/env bash
# NamedMask on COCO2017 val.
# Train: bash scripts/namedmask/coco2017_val_n500_cp2_sr10100.sh [key=value ...]; evaluate: the same with WEIGHTS first.
exec bash "$(dirname "$0")/../run.sh" configs/namedmask/coco2017_val_n500_cp2.yaml "$@"
