#!/usr/bin/env bash
# ReCo on your own names and pictures: bash scripts/reco/custom.sh categories='[road, sky, grass]' dir_train_dataset=PICTURES [key=value ...]
# With method=reco_plus a segmenter is trained on ReCo's labels of the pictures.
exec bash "$(dirname "$0")/../run.sh" configs/reco/custom.yaml "$@"
