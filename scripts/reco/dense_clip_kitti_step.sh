#!/usr/bin/env bash
# Dense CLIP alone, the baseline of ReCo, on KITTI-STEP: bash scripts/reco/dense_clip_kitti_step.sh [key=value ...] scores the val split.
# Nothing is retrieved or trained, and there are no weights to give.
exec bash "$(dirname "$0")/../run.sh" configs/reco/dense_clip_kitti_step.yaml "$@"
