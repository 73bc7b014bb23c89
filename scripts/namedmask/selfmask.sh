#!/usr/bin/env bash
# SelfMask's pseudo-masks of all retrieved pictures (VOC2012's, or dataset_name=...): bash scripts/namedmask/selfmask.sh [key=value ...]
exec bash "$(dirname "$0")/../run.sh" configs/namedmask/selfmask.yaml "$@"
