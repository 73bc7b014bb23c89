#!/usr/bin/env bash
# Makes COCO2017's semantic label PNGs from its instance annotations.
# Usage: bash scripts/coco_semantic_masks.sh COCO_FOLDER [--split val2017|train2017] [--crowd category|ignore]
set -euo pipefail
if [ $# -lt 1 ]; then
    sed -n '2,3p' "$0" | cut -c3-
    exit 2
fi
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
PYTHON="$(bash "$ROOT/scripts/setup.sh")"
PYTHONPATH="$ROOT" exec "$PYTHON" -m datasets.coco_masks --dir_dataset "$@"
