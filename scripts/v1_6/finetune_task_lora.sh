#!/usr/bin/env bash
# Your own task with LoRA on a LLaVA checkpoint (MODEL=liuhaotian/llava-v1.6-vicuna-7b).
# finetune_task_lora.sh [flags of llava.train.train]; see scripts/lib/train.sh for the environment.
EMBEDDED=${EMBEDDED:-llava-next-tiny} STEPS=${STEPS:-6} BATCH=${BATCH:-1}
source "$(dirname "${BASH_SOURCE[0]}")/../lib/train.sh"
run_training finetune_task_lora_v1_6 3 "${COMMON[@]}" --version v1 --group_by_modality_length True \
    --lora_enable True --lora_r 128 --lora_alpha 256 --mm_projector_lr 2e-5 \
    --model_max_length 4096 --per_device_train_batch_size 8 --learning_rate 2e-4 --save_steps 50000
