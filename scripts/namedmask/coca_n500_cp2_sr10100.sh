#!/usr/bin/env bash
# NamedMask on CoCA.
# Train: bash scripts/namedmask/coca_n500_cp2_sr10100.sh [key=value ...]; evaluate: the same with WEIGHTS first.
exec bash "$(dirname "$0")/../run.sh" configs/namedmask/coca_n500_cp2.yaml "$@"
