# Shared by Qwen2-VL/eval_scripts/lmms_eval.sh and Qwen2_5-VL/eval_scripts/lmms_eval.sh:
# run_lmms FAMILY [Sparse] [Reduction_Ratio]: True or False (default True), share of visual tokens to drop (default 0.889).
# Environment:
#   MODEL TASKS OUTPUT        checkpoint (folder or hub name), lmms-eval's tasks, folder of the results
#   BATCH_SIZE LIMIT          questions at a time; questions of each task (all: every one)
#   MODEL_ARGS                more arguments of the model, such as max_pixels=602112,strategy=random,seed=1
#   ATTN=flash_attention_2    needs the extra `flash`
#   CUDA_VISIBLE_DEVICES      one process for each GPU; NPROC=1: one process alone
#   PYTHON                    an interpreter with lmms-eval and this project; by default .venv-lmms, which is made on first use
# Without MODEL the embedded tiny model answers, unpruned first; without TASKS it is asked the offline mini tasks.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
MINI_TASKS=pope_mini,mme_mini,textvqa_mini,two_images_mini,video_mini
MINI_LIMIT=60                            # of each task: both runs end within three minutes on two cores
TINY_PIXELS=min_pixels=200704,max_pixels=401408  # the embedded models' own; lmms-eval's classes would put theirs instead

fail() {
    echo "error: $1" >&2
    exit 2
}

run_lmms() {
    local family=$1 sparse=${2:-True} ratio=${3:-0.889}
    case "$sparse" in
        True | true) sparse=True ;;
        False | false) sparse=False ;;
        *) fail "Sparse must be True or False, got $sparse; usage: lmms_eval.sh [Sparse] [Reduction_Ratio]" ;;
    esac
    if ! [[ $ratio =~ ^0?\.[0-9]*[1-9][0-9]*$ ]]; then
        fail "Reduction_Ratio must be between 0 and 1 (both excluded), got $ratio; 0.778 drops 77.8 %"
    fi
    local model=${MODEL:-} tasks=${TASKS:-} limit=${LIMIT:-} arguments=${MODEL_ARGS:-}
    if [ -z "$model" ]; then
        local name=${family/_vl/-vl}-tiny
        model="$ROOT/playground/models/$name"
        if [ ! -d "$model" ]; then
            fail "the embedded model playground/models/$name is not there; set MODEL to a checkpoint's folder or hub name"
        fi
        echo "MODEL is not set: the embedded tiny model answers (playground/models/$name), unpruned first"
        arguments="$TINY_PIXELS${arguments:+,$arguments}"
        export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}  # a model this small gains nothing from a second thread
    fi
    if [ -z "$tasks" ]; then
        tasks=$MINI_TASKS
        limit=${limit:-$MINI_LIMIT}
        echo "TASKS is not set: the offline mini tasks are asked, $limit questions of each (LIMIT=all: every one)"
        if [ -z "${MODEL:-}" ]; then export HF_HUB_OFFLINE=1; fi
    fi
    case "${ATTN:-}" in
        "") ;;
        flash_attention_2) arguments="${arguments:+$arguments,}use_flash_attention_2=True" ;;
        *) fail "ATTN must be flash_attention_2 or not set, got $ATTN" ;;
    esac
    find_python
    if [ -z "${MODEL:-}" ] && [ "$sparse" = True ]; then
        evaluate "$family" "$model" "$tasks" "$limit" unpruned "$arguments" Sparse=False
    fi
    local setting=unpruned dart=Sparse=False
    if [ "$sparse" = True ]; then
        setting=dart-$ratio
        dart="Sparse=True,pruned_layer=2,image_token_start_index=0,image_token_length=0,max_num_trunction=128"
        dart+=",reduction_ratio=$ratio,pivot_image_token=4,pivot_text_token=4"
    fi
    evaluate "$family" "$model" "$tasks" "$limit" "$setting" "$arguments" "$dart"
}

# python: PYTHON, or the environment of its own that `make setup-lmms` makes.
find_python() {
    python=${PYTHON:-$ROOT/.venv-lmms/bin/python}
    if [ -z "${PYTHON:-}" ]; then
        if [ ! -e "$ROOT/.venv-lmms/.installed" ]; then
            echo "lmms-eval is installed once, into .venv-lmms (make setup-lmms)"
        fi
        make --silent -C "$ROOT" setup-lmms
    fi
    export PYTHONPATH="$ROOT:$ROOT/lmms-eval${PYTHONPATH:+:$PYTHONPATH}"
}

# evaluate FAMILY MODEL TASKS LIMIT SETTING ARGUMENTS DART: one run, which ends with lmms-eval's table.
evaluate() {
    local family=$1 model=$2 tasks=$3 limit=$4 setting=$5 arguments=$6 dart=$7
    local out=${OUTPUT:-$ROOT/outputs/lmms_eval}/$(basename "$model")/$setting
    mkdir -p "$out"
    local started="$out/.started"
    touch "$started"
    echo "== $family, $setting"
    local launch=(--quiet --num_machines 1 --mixed_precision no --dynamo_backend no
        --num_cpu_threads_per_process "$(nproc)" --main_process_port "${MAIN_PORT:-29500}")
    count_processes
    launch+=(--num_processes "$processes" "${kind[@]}")
    local ask=(--model "${family}_dart" --model_args "pretrained=$model${arguments:+,$arguments},$dart"
        --tasks "$tasks" --include_path "$ROOT/lmms-eval/tasks" --batch_size "${BATCH_SIZE:-1}"
        --output_path "$out" --verbosity "${VERBOSITY:-WARNING}")
    if [ -n "$limit" ] && [ "$limit" != all ]; then ask+=(--limit "$limit"); fi
    # `accelerate launch`, without the imports of accelerate's other commands.
    # accelerate makes every exit code 1; what lmms-eval itself runs into, it prints and exits with 0.
    TRANSFORMERS_VERBOSITY=${TRANSFORMERS_VERBOSITY:-error} TOKENIZERS_PARALLELISM=${TOKENIZERS_PARALLELISM:-false} \
        "$python" -m accelerate.commands.launch "${launch[@]}" -m lmms_eval "${ask[@]}" || exit 2
    if [ -z "$(find "$out" -name '*_results.json' -newer "$started")" ]; then
        echo "error: lmms-eval wrote no results to $out; its own message is above" >&2
        exit 1
    fi
}

# processes: NPROC, or one for each GPU, or one; kind: what accelerate is told about them.
count_processes() {
    local gpus=0
    if [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
        gpus=$(tr ',' '\n' <<<"$CUDA_VISIBLE_DEVICES" | grep -c . || true)
    elif command -v nvidia-smi >/dev/null; then
        gpus=$(nvidia-smi -L | grep -c '^GPU' || true)
    fi
    processes=${NPROC:-$((gpus > 0 ? gpus : 1))}
    kind=()
    if [ "$gpus" -eq 0 ]; then kind=(--cpu); elif [ "$processes" -gt 1 ]; then kind=(--multi_gpu); fi
}
