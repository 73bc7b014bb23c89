#!/usr/bin/env bash
# NamedMask on ImageNet-S919.
# Train: bash scripts/namedmask/imagenet_s919_n500_cp2_sr10100.sh [key=value ...]; evaluate: the same with WEIGHTS first.
exec bash "$(dirname "$0")/../run.sh" configs/namedmask/imagenet_s919_n500_cp2.yaml "$@"
