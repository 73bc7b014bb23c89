#!/usr/bin/env bash
# Teach the models of the built-in world again, from nothing: bash scripts/pretrain_world.sh [OUT]
# One to two hours of two cores; a killed run goes on where it stopped. The shipped ones are in world_models/.
set -euo pipefail
OUT="$(realpath -m "${1:-pretrained_world}")"
cd "$(dirname "${BASH_SOURCE[0]}")/.."
export OMP_NUM_THREADS=1 # of the worker processes; the training sets its own
PYTHON="$(bash scripts/setup.sh)"
exec "$PYTHON" -m scripts.pretrain_world --output "$OUT"
