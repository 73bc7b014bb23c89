#!/usr/bin/env bash
# SelfMask on your own pictures (dir_dataset=PICTURES). Train: bash scripts/selfmask/custom.sh [key=value ...]; evaluate: the same with WEIGHTS first.
exec bash "$(dirname "$0")/../run.sh" configs/selfmask/custom.yaml "$@"
