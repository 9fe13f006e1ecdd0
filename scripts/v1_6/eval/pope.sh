#!/usr/bin/env bash
# pope.sh [Reduction_Ratio] [Max_Num_Trunction], LLaVA-NeXT: without arguments 320 tokens, with "none" the unpruned model; see scripts/lib/eval.sh for the environment.
source "$(dirname "${BASH_SOURCE[0]}")/../../lib/eval_next.sh"
run_benchmark pope "${1:-}" "${2:-}"
