#!/usr/bin/env bash
# ReCo+ on COCO-Stuff.
# Train: bash scripts/reco/reco_plus_coco_stuff.sh [dir_pseudo_masks=FOLDER] [key=value ...]; evaluate: the same with WEIGHTS first.
exec bash "$(dirname "$0")/../run.sh" configs/reco/plus_coco_stuff.yaml "$@"
