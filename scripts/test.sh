#!/usr/bin/env bash
# Runs the tests: bash scripts/test.sh [pytest arguments]
# TEST_WORKERS sets the number of processes (default 2).
set -euo pipefail
cd "$(dirname "$0")/.."
PYTHON="$(bash scripts/setup.sh --dev)"
exec "$PYTHON" -m pytest -n "${TEST_WORKERS:-2}" --dist worksteal "$@"
