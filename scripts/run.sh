#!/usr/bin/env bash
# What every scripts/<system>/<benchmark>.sh runs: bash scripts/run.sh [OPTION] CONFIG [WEIGHTS] [arguments] [key=value ...]
# Without WEIGHTS (a run folder or file): train. With: evaluate. --evaluate-only: WEIGHTS have to be given.
# --splits: a first word train or val is the split that is predicted; train writes label PNGs, with WEIGHTS as references.
# --experts: the words after CONFIG are categories, the experts to train (none: all), unless the first one is WEIGHTS.
# NUM_GPUS=4 starts one process per GPU. Relative paths are relative to the folder the script is called from.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"

option=""
case "$1" in --evaluate-only | --experts | --splits) option="$1"; shift ;; esac
config="$ROOT/$1"
shift

quoted() { printf "'%s'" "${1//\'/\'\'}"; } # as YAML does it
is_weights() { [[ "$1" == *.pt || "$1" == *.pth || -f "$1" || -f "$1/config.yaml" ]]; }

if [ "$option" = "--experts" ] && ! is_weights "${1:-}"; then
    names=""
    while [ $# -gt 0 ] && [[ "$1" != -* && "$1" != *=* ]]; do
        names="$names${names:+, }$(quoted "$1")"
        shift
    done
    [ -z "$names" ] || set -- "single_category=[$names]" "$@"
fi

split=""
if [ "$option" = "--splits" ]; then
    case "${1:-}" in train | val) split="$1"; shift; set -- "$@" "split=$split" ;; esac
fi

weights=""
case "${1:-}" in
    "" | -*) ;;
    *=*) if [ -e "$1" ]; then weights="$1"; shift; fi ;;
    *) weights="$1"; shift ;;
esac
if [ -n "$weights" ] && [ "$split" = train ]; then
    set -- "reference_path=$(quoted "$weights")" "$@" # in front: the caller's own words win
    weights=""
fi

if [ -n "$weights" ]; then
    command=(inference.py --config "$config" --weights "$weights")
elif [ "$option" = "--evaluate-only" ]; then
    echo "error: this benchmark is for evaluation only: give a weight file or run folder as the first argument" >&2
    exit 2
else
    command=(train.py --config "$config")
fi

PYTHON="$(bash "$ROOT/scripts/setup.sh")"
command[0]="$ROOT/${command[0]}"
if [ "${NUM_GPUS:-1}" -gt 1 ]; then
    exec "$PYTHON" -m torch.distributed.run --standalone --nproc_per_node="$NUM_GPUS" "${command[@]}" "$@"
fi
exec "$PYTHON" "${command[@]}" "$@"
