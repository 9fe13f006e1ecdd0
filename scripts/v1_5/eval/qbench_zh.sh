#!/usr/bin/env bash
# qbench_zh.sh [Reduction_Ratio] [Max_Num_Trunction]: without arguments the unpruned model; see scripts/lib/eval.sh for the environment.
source "$(dirname "${BASH_SOURCE[0]}")/../../lib/eval.sh"
run_benchmark qbench_zh "${1:-}" "${2:-}"
