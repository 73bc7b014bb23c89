#!/usr/bin/env bash
# ReCo+ on KITTI-STEP.
# Train: bash scripts/reco/reco_plus_kitti_step.sh [dir_pseudo_masks=FOLDER] [key=value ...]; evaluate: the same with WEIGHTS first.
exec bash "$(dirname "$0")/../run.sh" configs/reco/plus_kitti_step.yaml "$@"
