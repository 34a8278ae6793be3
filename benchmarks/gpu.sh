#!/usr/bin/env bash
# All that is measured on a GPU, in one go of less than eight minutes: a table last, JSON in benchmarks/results/gpu.json.
# `benchmarks/gpu.sh --dry` does the same on a processor at toy sizes, in seconds. Nothing is fetched from a network.
set -euo pipefail
cd "$(dirname "$0")/.."
python="${PYTHON:-}"
if [ -z "$python" ]; then
  python=$([ -x .venv/bin/python ] && echo .venv/bin/python || command -v python3)
fi
export PYTHONPATH="$PWD/src${PYTHONPATH:+:$PYTHONPATH}" HF_HUB_OFFLINE=1
exec "$python" benchmarks/gpu.py "$@"
