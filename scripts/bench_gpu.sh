#!/usr/bin/env bash
# Everything that needs a CUDA GPU: its tests, the kernels' times and the latency of the three shapes; results go to
# docs/results (or $RESULTS), the tables of the docs are made from them.
#   bash scripts/bench_gpu.sh            PYTHON=python3 RESULTS=/tmp/results bash scripts/bench_gpu.sh
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-$([[ -x .venv/bin/python ]] && echo .venv/bin/python || echo python3)}
RESULTS=${RESULTS:-docs/results}

if ! "$PYTHON" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())'; then
    echo "error: $PYTHON's torch sees no CUDA device; on a CPU: python -m benchmarks.latency, python -m benchmarks.selection" >&2
    exit 2
fi
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv

"$PYTHON" -m pytest tests/test_kernels.py tests/test_kernels_spread.py tests/test_kernels_gpu.py
"$PYTHON" -m benchmarks.kernels --out "$RESULTS/kernels-gpu.json"
latency() { # name, then arguments
    "$PYTHON" -m benchmarks.latency --dtype bfloat16 --engine graphs --batch-sizes 1,8 \
        --out "$RESULTS/latency-gpu-$1.json" --model "$@"
}
latency llava-next-7b --keep 640,320,160 --plot "$RESULTS/latency-gpu-llava-next-7b.png"
latency llava-1.5-7b --keep 192,128,64
latency qwen2.5-vl-7b --keep 0.111
"$PYTHON" -m benchmarks.scaling --out "$RESULTS/selection-scaling-gpu.json"
if [[ $RESULTS == docs/results ]]; then
    "$PYTHON" -m dev.results.render
fi
