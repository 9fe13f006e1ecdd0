# Shared by scripts/*/eval/*.sh: run_benchmark TASK [Reduction_Ratio] [Max_Num_Trunction]
# Environment: CKPT DATA SPLIT DEVICE ATTN STRATEGY PIVOT_ORDER SCOPE CONV_MODE BATCH_SIZE MAX_NEW_TOKENS OUT
#   CUDA_VISIBLE_DEVICES (several: one process each) OVERWRITE (1: ask all anew) PYTHON; EMBEDDED is the model in playground/models without CKPT.
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
        echo "CKPT is not set: the embedded tiny model answers (playground/models/$embedded)"
    fi
    if [ -z "$data" ]; then
        data="$ROOT/playground/data/mini"
        echo "DATA is not set: the embedded mini benchmark is asked (playground/data/mini)"
    fi
    local flags=() setting=vanilla part=()
    if [ -n "$ratio$tokens" ]; then
        flags+=(--sparse --strategy "${STRATEGY:-dart}" --pivot_order "${PIVOT_ORDER:-original}")
        setting="${STRATEGY:-dart}-${PIVOT_ORDER:-original}"
        if [ -n "$ratio" ]; then flags+=(--reduction_ratio "$ratio"); setting+="-r$ratio"; fi
        if [ -n "$tokens" ]; then flags+=(--max_num_trunction "$tokens"); setting+="-t$tokens"; fi
        if [ -n "${SCOPE:-}" ]; then flags+=(--scope "$SCOPE"); setting+="-$SCOPE"; fi
    else
        echo "no reduction ratio given: the unpruned model is run"
    fi
    if [ -n "${DEVICE:-}" ]; then flags+=(--device "$DEVICE"); fi
    if [ -n "${ATTN:-}" ]; then flags+=(--attn_implementation "$ATTN"); fi
    if [ -n "${MAX_NEW_TOKENS:-}" ]; then flags+=(--max_new_tokens "$MAX_NEW_TOKENS"); fi
    if [ "${OVERWRITE:-0}" = 1 ]; then flags+=(--overwrite); fi
    if [ -n "${SPLIT:-}" ]; then part=(--split "$SPLIT"); setting+="-$SPLIT"; fi
    local out=${OUT:-$ROOT/outputs/eval/$task}
    local name
    name="$(basename "$ckpt")-$setting"
    mkdir -p "$out"
    export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
    local what=(--task "$task" --data "$data" "${part[@]}")
    local common=(-m llava.eval.run "${what[@]}" --model-path "$ckpt" --batch-size "${BATCH_SIZE:-1}"
        --conv-mode "${CONV_MODE:-vicuna_v1}" "${flags[@]}")
    local gpus=()
    IFS=',' read -ra gpus <<<"${CUDA_VISIBLE_DEVICES:-}"
    if [ "${#gpus[@]}" -gt 1 ]; then
        local pids=() parts=() index failed=0
        for index in "${!gpus[@]}"; do
            parts+=("$out/$name.${#gpus[@]}_$index.jsonl")
            CUDA_VISIBLE_DEVICES=${gpus[$index]} "$python" "${common[@]}" --num-chunks "${#gpus[@]}" --chunk-idx "$index" \
                --answers-file "${parts[-1]}" &
            pids+=($!)
        done
        for index in "${pids[@]}"; do wait "$index" || failed=$?; done
        if [ "$failed" -ne 0 ]; then exit "$failed"; fi
        cat "${parts[@]}" >"$out/$name.jsonl.tmp"
        mv "$out/$name.jsonl.tmp" "$out/$name.jsonl"
        "$python" -m llava.eval.score "${what[@]}" --answers-file "$out/$name.jsonl" --out "$out/$name.score.json"
    else
        "$python" "${common[@]}" --answers-file "$out/$name.jsonl" --out "$out/$name.score.json"
    fi
}
