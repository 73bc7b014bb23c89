#!/usr/bin/env bash
# Finds or makes an environment that can run the project, and prints the path of its Python.
# Usage: PYTHON="$(bash scripts/setup.sh [--dev])"
# An active environment with all packages is used as it is; otherwise .venv is made in the project folder.
# UNMASKED_PYTHON names the Python that .venv is made from.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
ROOT="$PWD"

FILES=(requirements.txt)
if [ "${1:-}" = "--dev" ]; then FILES+=(requirements-dev.txt); fi

suitable() { "$1" scripts/check_environment.py "${FILES[@]}" >/dev/null 2>&1; }

# 1. the active environment, 2. our own
for python in python python3 .venv/bin/python; do
    if command -v "$python" >/dev/null 2>&1 && suitable "$python"; then
        command -v "$python" | sed "s|^\.venv|$ROOT/.venv|"
        exit 0
    fi
done

# 3. make our own, one process at a time
mkdir -p .venv
exec 9>.venv/setup.lock
if command -v flock >/dev/null 2>&1; then flock 9; fi
if ! suitable .venv/bin/python; then
    if ! { [ -x .venv/bin/python ] && .venv/bin/python -m pip --version; } >/dev/null 2>&1; then
        base=""
        for python in "${UNMASKED_PYTHON:-}" python3 python3.12 python3.11 python3.13 python3.10; do
            if [ -n "$python" ] && "$python" -c 'import sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
                base="$python"
                break
            fi
        done
        if [ -z "$base" ]; then
            echo "setup: no Python 3.10 or newer (with venv) found. Install one, or name it: UNMASKED_PYTHON=/path/to/python" >&2
            exit 2
        fi
        echo "setup: making .venv with $("$base" --version 2>&1)" >&2
        "$base" -m venv .venv >&2
    fi
    echo "setup: installing the packages of ${FILES[*]} (a few minutes; details in .venv/setup.log)" >&2
    options=()
    for file in "${FILES[@]}"; do options+=(-r "$file"); done
    if ! .venv/bin/python -m pip install --disable-pip-version-check --no-input "${options[@]}" >.venv/setup.log 2>&1; then
        tail -n 15 .venv/setup.log >&2
        echo "setup: pip failed; run the same command again to go on, or install ${FILES[*]} by hand" >&2
        exit 2
    fi
    .venv/bin/python scripts/check_environment.py "${FILES[@]}" >&2
fi
echo "$ROOT/.venv/bin/python"
