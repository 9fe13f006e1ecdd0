#!/usr/bin/env bash
# llavabench.sh [Reduction_Ratio] [Max_Num_Trunction], LLaVA-NeXT: without arguments the unpruned model; see scripts/lib/eval.sh for the environment.
EMBEDDED=llava-next-tiny
source "$(dirname "${BASH_SOURCE[0]}")/../../lib/eval.sh"
run_benchmark llavabench "${1:-}" "${2:-}"
