#!/usr/bin/env bash
# NamedMask on your own names and pictures: bash scripts/namedmask/custom.sh categories='[cat, dog]' dir_train_dataset=PICTURES [key=value ...]
exec bash "$(dirname "$0")/../run.sh" configs/namedmask/custom.yaml "$@"
