#!/usr/bin/env bash
# ReCo on KITTI-STEP: bash scripts/reco/reco_kitti_step.sh [REFERENCES] [key=value ...] scores the val split; without REFERENCES they are computed.
# With train as the first word, before REFERENCES: label PNGs of the training split, for ReCo+.
exec bash "$(dirname "$0")/../run.sh" --splits configs/reco/kitti_step.yaml "$@"
