#!/usr/bin/env bash
# Stage 2 with EPIC: the model learns from itself under a lower compression. PROJECTOR is stage 1's mm_projector.bin.
# finetune_epic.sh [tcd|lcd|icd|tcd-coded] [flags of llava.train.train, --strategy fastv]; see scripts/lib/train.sh.
METHOD=tcd
case ${1:-} in "" | -*) ;; *) METHOD=$1 && shift ;; esac
STEPS=${STEPS:-6}
source "$(dirname "${BASH_SOURCE[0]}")/../lib/train.sh"
run_training "finetune_epic_$METHOD" 2 "${COMMON[@]}" --version v1 --mm_projector_type mlp2x_gelu --image_aspect_ratio pad \
    --group_by_modality_length True --model_max_length 2048 --per_device_train_batch_size 16 --gradient_accumulation_steps 2 \
    --learning_rate 2e-5 --save_steps 50000 --epic "$METHOD"
