#!/usr/bin/env bash
# ReCo on Pascal Context: bash scripts/reco/reco_pascal_context.sh [REFERENCES] [key=value ...] scores the val split; without REFERENCES they are computed.
# With train as the first word, before REFERENCES: label PNGs of the training split, for ReCo+.
exec bash "$(dirname "$0")/../run.sh" --splits configs/reco/pascal_context.yaml "$@"
