#!/usr/bin/env bash
# The paper's tables, ours beside them: scripts/reproduce.sh table1|table2|qwen2vl|latency [--dry-run]
# Environment: CKPT DATA PYTHON, and what scripts/v1_5/eval reads. Without CKPT the embedded model runs all of it.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
if [ -z "${PYTHON:-}" ]; then
    if [ -x "$ROOT/.venv/bin/python" ]; then PYTHON="$ROOT/.venv/bin/python"; else PYTHON=python3; fi
fi
export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m scripts.reproduce "$@"
