# Shared by scripts/*/eval/*.sh: run_benchmark TASK [Reduction_Ratio] [Max_Num_Trunction]
#   Without a ratio and a number of tokens, or with "none", the unpruned model answers (scripts/v1_6: without both, 320 tokens).
# Environment:
#   CKPT DATA SPLIT OUT             checkpoint, folder of the benchmarks' folders, part of the benchmark, folder of the answers
#   STRATEGY PIVOT_ORDER SCOPE      how tokens are chosen; SCOPE=joint: one budget for all tokens, span: a share for each picture or tile
#   DEVICE ATTN BATCH_SIZE CONV_MODE MAX_NEW_TOKENS PYTHON
#   OVERWRITE=1                     ask all anew; without it a run resumes
#   CUDA_VISIBLE_DEVICES=0,1        one process for each GPU
#   NPROC=2                         so many processes (on CPUs, or taking turns on the GPUs). Across machines: accelerate launch -m llava.eval.run
# EMBEDDED names the model in playground/models that answers without CKPT, DEFAULT_TOKENS the budget without arguments.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"

run_benchmark() {
    local task=$1 ratio=${2:-} tokens=${3:-}
    local python=${PYTHON:-}
    if [ -z "$python" ]; then
        if [ -x "$ROOT/.venv/bin/python" ]; then python="$ROOT/.venv/bin/python"; else python=python3; fi
    fi
    local ckpt=${CKPT:-} data=${DATA:-} embedded=${EMBEDDED:-llava-tiny}
    if [ -z "$ckpt" ]; then
        ckpt="$ROOT/playground/models/$embedded"
        if [ ! -d "$ckpt" ]; then
            echo "error: the embedded model playground/models/$embedded is not there; set CKPT to a checkpoint's folder or hub name" >&2
            exit 2
        fi
        echo "CKPT is not set: the embedded tiny model answers (playground/models/$embedded)"
    fi
    if [ -z "$data" ]; then
        data="$ROOT/playground/data/mini"
        echo "DATA is not set: the embedded mini benchmark is asked (playground/data/mini)"
    fi
    local flags=() setting=vanilla part=()
    if [ -z "$ratio$tokens" ] && [ -n "${DEFAULT_TOKENS:-}" ]; then
        tokens=$DEFAULT_TOKENS
        echo "no budget given: $tokens visual tokens are kept (none: all of them)"
    fi
    if [ "$ratio" = none ]; then ratio='' tokens=''; fi
    if [ -n "$ratio$tokens" ]; then
        flags+=(--sparse --strategy "${STRATEGY:-dart}" --pivot_order "${PIVOT_ORDER:-original}")
        setting="${STRATEGY:-dart}-${PIVOT_ORDER:-original}"
        if [ -n "$ratio" ]; then flags+=(--reduction_ratio "$ratio"); setting+="-r$ratio"; fi
        if [ -n "$tokens" ]; then flags+=(--max_num_trunction "$tokens"); setting+="-t$tokens"; fi
        if [ -n "${SCOPE:-}" ]; then flags+=(--scope "$SCOPE"); setting+="-$SCOPE"; fi
    else
        echo "the unpruned model is run"
    fi
    if [ -n "${DEVICE:-}" ]; then flags+=(--device "$DEVICE"); fi
    if [ -n "${ATTN:-}" ]; then flags+=(--attn_implementation "$ATTN"); fi
    if [ -n "${MAX_NEW_TOKENS:-}" ]; then flags+=(--max_new_tokens "$MAX_NEW_TOKENS"); fi
    if [ -n "${CONV_MODE:-}" ]; then flags+=(--conv-mode "$CONV_MODE"); fi
    if [ -n "${SPLIT:-}" ]; then part=(--split "$SPLIT"); setting+="-$SPLIT"; fi
    local out=${OUT:-$ROOT/outputs/eval/$task}
    local name
    name="$(basename "$ckpt")-$setting"
    mkdir -p "$out"
    export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
    local answers="$out/$name.jsonl"
    local command=("$python" -m llava.eval.run --task "$task" --data "$data" "${part[@]}" --model-path "$ckpt"
        --batch-size "${BATCH_SIZE:-1}" "${flags[@]}" --answers-file "$answers" --out "$out/$name.score.json")
    local gpus=()
    IFS=',' read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-}"
    local count=${NPROC:-${#gpus[@]}}
    if [ "$count" -gt 1 ]; then
        if [ "${OVERWRITE:-0}" = 1 ]; then rm -f "$answers" "$answers".meta.json "$answers".part*; fi
        # The processes share the questions, and the one that finishes last scores (llava/eval/engine/ranks.py). They need
        # no rendezvous, and one that dies must not end the others: xargs rather than torchrun. Each says why it failed.
        export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} WORLD_SIZE=$count
        seq 0 $((count - 1)) | xargs -P "$count" -I@rank@ env RANK=@rank@ LOCAL_RANK=@rank@ "${command[@]}" || exit 2
    else
        if [ "${OVERWRITE:-0}" = 1 ]; then command+=(--overwrite); fi
        "${command[@]}"
    fi
}
