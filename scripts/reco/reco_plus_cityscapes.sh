#!/usr/bin/env bash
# ReCo+ on Cityscapes.
# Train: bash scripts/reco/reco_plus_cityscapes.sh [dir_pseudo_masks=FOLDER] [key=value ...]; evaluate: the same with WEIGHTS first.
exec bash "$(dirname "$0")/../run.sh" configs/reco/plus_cityscapes.yaml "$@"
