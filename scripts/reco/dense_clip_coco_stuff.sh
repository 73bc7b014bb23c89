#!/usr/bin/env bash
# Dense CLIP alone, the baseline of ReCo, on COCO-Stuff: bash scripts/reco/dense_clip_coco_stuff.sh [key=value ...] scores the val split.
# Nothing is retrieved or trained, and there are no weights to give.
exec bash "$(dirname "$0")/../run.sh" configs/reco/dense_clip_coco_stuff.yaml "$@"
