#!/usr/bin/env bash
# Stage 2: projector and language model learn conversations. PROJECTOR is stage 1's mm_projector.bin.
# finetune.sh [flags of llava.train.train]; see scripts/lib/train.sh for the environment.
source "$(dirname "${BASH_SOURCE[0]}")/../lib/train.sh"
run_training finetune 3 "${COMMON[@]}" --version v1 --mm_projector_type mlp2x_gelu --image_aspect_ratio pad --group_by_modality_length True \
    --model_max_length 2048 --per_device_train_batch_size 16 --learning_rate 2e-5 --save_steps 50000
