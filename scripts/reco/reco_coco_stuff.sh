#!/usr/bin/env bash
# ReCo on COCO-Stuff: bash scripts/reco/reco_coco_stuff.sh [REFERENCES] [key=value ...] scores the val split; without REFERENCES they are computed.
# With train as the first word, before REFERENCES: label PNGs of the training split, for ReCo+.
exec bash "$(dirname "$0")/../run.sh" --splits configs/reco/coco_stuff.yaml "$@"
