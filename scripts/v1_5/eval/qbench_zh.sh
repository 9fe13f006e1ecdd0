#!/usr/bin/env bash
# qbench_zh.sh [Reduction_Ratio] [Max_Num_Trunction]: without arguments the unpruned model; see scripts/lib/eval.sh for the environment.
CONV_MODE=${CONV_MODE:-llava_v1}  # as LLaVA asks Q-Bench
source "$(dirname "${BASH_SOURCE[0]}")/../../lib/eval.sh"
run_benchmark qbench_zh "${1:-}" "${2:-}"
