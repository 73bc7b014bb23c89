#!/usr/bin/env bash
# See it work, nothing downloaded, on a CPU: bash scripts/demo.sh [zutis|namedmask|reco] [--output DIR] [key=value ...]
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON="$(bash scripts/setup.sh)"
exec "$PYTHON" -m scripts.demonstrations "$@"
