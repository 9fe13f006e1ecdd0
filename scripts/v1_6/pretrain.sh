#!/usr/bin/env bash
# Stage 1: the projector learns captions. MODEL is a language model, VISION_TOWER a CLIP.
# pretrain.sh [flags of llava.train.train]; see scripts/lib/train.sh for the environment.
EMBEDDED=${EMBEDDED:-llava-next-tiny} STEPS=${STEPS:-6} BATCH=${BATCH:-1}
source "$(dirname "${BASH_SOURCE[0]}")/../lib/train.sh"
run_training pretrain_v1_6 2 "${COMMON[@]}" --version plain --tune_mm_mlp_adapter True --mm_projector_type mlp2x_gelu \
    --model_max_length 4096 --per_device_train_batch_size 32 --learning_rate 1e-3 --save_steps 24000
