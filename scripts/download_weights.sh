#!/usr/bin/env bash
# Downloads published files into UNMASKED_CACHE (default ~/.cache/unmasked) and prints their paths.
# Usage: bash scripts/download_weights.sh [NAME ...]     without names: lists what there is
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON="$(bash scripts/setup.sh)"
exec "$PYTHON" -m utils.download "$@"
