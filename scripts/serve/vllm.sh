#!/usr/bin/env bash
# vLLM's OpenAI server with DART's plugin. scripts/serve/vllm.sh [flags of vLLM's server, which win]
# Environment:
#   MODEL        default: the embedded Qwen2.5-VL
#   KEEP         tokens of each image, or a share (default: 0.222); off: no default
#   STRATEGY     cenprune, dart (default), divprune, random, spread, uniform
#   PER_REQUEST  1: a request may set `mm_processor_kwargs`, all of them; for clients that you trust
#   PORT PYTHON  8000; the python of .venv-vllm, which make setup-vllm makes
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"

MODEL=${MODEL:-}
if [ -z "$MODEL" ]; then
    MODEL="$ROOT/playground/models/qwen2_5-vl-tiny"
    echo "MODEL is not set: the embedded tiny model is served (playground/models/qwen2_5-vl-tiny)"
fi
if [ -z "${PYTHON:-}" ]; then
    PYTHON="$ROOT/.venv-vllm/bin/python"
    if [ ! -x "$PYTHON" ]; then
        echo "error: .venv-vllm is not there: make setup-vllm, or set PYTHON to one that has vllm and this project" >&2
        exit 2
    fi
fi
words=()
if [ "${KEEP:=0.222}" != off ]; then
    words=(--mm-processor-kwargs "{\"dart\": {\"keep\": $KEEP, \"strategy\": \"${STRATEGY:-dart}\"}}")
fi
if [ "${PER_REQUEST:-}" = 1 ]; then words+=(--trust-request-mm-kwargs); fi
if [ "$("$PYTHON" -c 'import torch; print(torch.cuda.is_available())')" = False ]; then
    export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}
    words+=(--dtype float32 --enforce-eager)
fi
exec "$PYTHON" -m vllm.entrypoints.openai.api_server --model "$MODEL" --served-model-name "$(basename "$MODEL")" \
    --host 127.0.0.1 --port "${PORT:-8000}" "${words[@]}" "$@"
