#!/usr/bin/env bash
# Stage 2: vision tower, projector and language model learn conversations. PROJECTOR is stage 1's mm_projector.bin.
# finetune.sh [flags of llava.train.train]; see scripts/lib/train.sh for the environment.
EMBEDDED=${EMBEDDED:-llava-next-tiny} STEPS=${STEPS:-6} BATCH=${BATCH:-1}
source "$(dirname "${BASH_SOURCE[0]}")/../lib/train.sh"
run_training finetune_v1_6 3 "${COMMON[@]}" --version v1 --mm_projector_type mlp2x_gelu --group_by_modality_length True \
    --image_aspect_ratio anyres --mm_patch_merge_type spatial_unpad \
    --image_grid_pinpoints "[(336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008)]" \
    --mm_vision_tower_lr 2e-6 \
    --model_max_length 4096 --per_device_train_batch_size 8 --learning_rate 2e-5 --save_steps 50000
