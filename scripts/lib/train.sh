# Shared by scripts/*/pretrain.sh, finetune*.sh: run_training NAME ZERO_STAGE FLAG..., sourced with the user's own flags, which win.
# Environment:
#   MODEL DATA_PATH IMAGE_FOLDER    checkpoint or language model, LLaVA's JSON, its pictures. Without MODEL the embedded model learns
#   VISION_TOWER PROJECTOR          for a language model: its CLIP, and the mm_projector.bin of stage 1
#   OUT                             folder of the checkpoints; a run that was cut off goes on from the last one in it
#   NPROC                           processes (default: one for each GPU, two without a GPU); 1 starts no launcher
#   DEEPSPEED                       its settings file; none: torch's DDP
#   REPORT_TO PYTHON
# EMBEDDED names the model in playground/models that is trained without MODEL, STEPS and BATCH say how long.
set -euo pipefail
ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
USERS_FLAGS=("$@")

fail() {
    echo "error: $1" >&2
    exit 2
}

# embedded_data: make the training data of the embedded model, once.
embedded_data() {
    local folder=$1
    if [ ! -f "$folder/finetune.json" ]; then
        (cd "$ROOT" && "$PYTHON" -m dev.tiny.llava_data --out "$folder")
    fi
}

run_training() {
    local name=$1 stage=$2
    shift 2
    local flags=("$@")
    if [ -z "${PYTHON:-}" ]; then
        if [ -x "$ROOT/.venv/bin/python" ]; then PYTHON="$ROOT/.venv/bin/python"; else PYTHON=python3; fi
    fi
    export PYTHONPATH="$ROOT${PYTHONPATH:+:$PYTHONPATH}"
    local gpus deepspeed
    gpus=$("$PYTHON" -c 'import torch; print(torch.cuda.device_count())')
    deepspeed=$("$PYTHON" -c 'import importlib.util as u; print(int(u.find_spec("deepspeed") is not None))')
    local model=${MODEL:-} data=${DATA_PATH:-} images=${IMAGE_FOLDER:-}
    local embedded=${EMBEDDED:-llava-tiny} steps=${STEPS:-20}
    if [ -z "$model" ]; then
        model="$ROOT/playground/models/$embedded"
        if [ ! -d "$model" ]; then fail "the embedded model playground/models/$embedded is not there; set MODEL to a checkpoint"; fi
        echo "MODEL is not set: the embedded tiny model is trained for $steps steps (playground/models/$embedded)"
        flags+=(--bf16 False --max_steps "$steps" --save_steps "$steps" --dataloader_num_workers 0
            --per_device_train_batch_size "${BATCH:-2}")
        if [ -z "$data" ]; then
            data="$ROOT/playground/data/eval/llava-tiny-train"
            echo "DATA_PATH is not set: on pictures made from a seed (playground/data/eval/llava-tiny-train)"
            embedded_data "$data"
            images="$data/images"
            case $name in pretrain*) data+=/pretrain.json ;; *) data+=/finetune.json ;; esac
        fi
    else
        if [ -z "$data" ]; then fail "DATA_PATH is not set: LLaVA's JSON file of conversations"; fi
        if [ -n "${VISION_TOWER:-}" ]; then flags+=(--vision_tower "$VISION_TOWER"); fi
        if [ -n "${PROJECTOR:-}" ]; then flags+=(--pretrain_mm_mlp_adapter "$PROJECTOR"); fi
    fi

    local count=${NPROC:-$((gpus > 0 ? gpus : 2))} zero=${DEEPSPEED:-} how
    if [ -z "$zero" ]; then
        if [ "$gpus" = 0 ]; then stage=2; fi # what ZeRO-3 saves in memory costs time
        zero="$ROOT/scripts/zero$stage.json"
        if [ "$count" = 1 ] && [ "$gpus" = 0 ]; then
            zero=none
        elif [ "$deepspeed" = 0 ]; then
            zero=none how="DDP: the package deepspeed is not installed"
        elif [ "$gpus" = 0 ] && ! { command -v g++ && command -v ninja; } >/dev/null; then
            zero=none how="DDP: on a CPU DeepSpeed compiles its communication and needs g++ and ninja"
        fi
    fi
    if [ "$zero" != none ]; then
        flags+=(--deepspeed "$zero")
        how="DeepSpeed $(basename "$zero" .json)"
    fi
    echo "$([ "$gpus" = 0 ] && echo "no GPU: on the CPU" || echo "on $gpus GPU(s)") in $count process(es)${how:+, $how}"

    local launch=()
    if [ "$count" -gt 1 ] || [ "$zero" != none ]; then
        launch=(-m llava.train.launch --standalone --nproc_per_node "$count")
    fi
    if [ "$gpus" = 0 ]; then export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}; fi
    "$PYTHON" "${launch[@]}" -m llava.train.train_mem --model_name_or_path "$model" --data_path "$data" \
        --image_folder "$images" --output_dir "${OUT:-$ROOT/outputs/train/$name}" --report_to "${REPORT_TO:-none}" \
        "${flags[@]}" "${USERS_FLAGS[@]}"
}

# What LLaVA's scripts have in common.
COMMON=(
    --mm_vision_select_layer -2 --mm_use_im_start_end False --mm_use_im_patch_token False --bf16 True --tf32 True
    --num_train_epochs 1 --gradient_accumulation_steps 1 --save_strategy steps --save_total_limit 1 --weight_decay 0.
    --warmup_ratio 0.03 --lr_scheduler_type cosine --logging_steps 1 --gradient_checkpointing True
    --dataloader_num_workers 4
)
