#!/usr/bin/env bash
# probe.sh [Reduction_Ratio] [Max_Num_Trunction]: without arguments the unpruned model; see scripts/lib/eval.sh for the environment.
# SPLIT names the set (docs/data.md); it is made on first use, in playground/data/eval unless DATA says where.
source "$(dirname "${BASH_SOURCE[0]}")/../../lib/eval.sh"
DATA="${DATA:-$ROOT/playground/data/eval}" run_benchmark probe "${1:-}" "${2:-}"
