#!/usr/bin/env bash
# SelfMask on DUTS. Train: bash scripts/selfmask/duts.sh [key=value ...]; evaluate: the same with WEIGHTS first.
exec bash "$(dirname "$0")/../run.sh" configs/selfmask/duts.yaml "$@"
