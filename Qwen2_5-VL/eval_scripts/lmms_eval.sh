#!/usr/bin/env bash
# Qwen2_5-VL through lmms-eval: lmms_eval.sh [Sparse] [Reduction_Ratio]; the environment is described in scripts/lib/lmms.sh.
source "$(dirname "${BASH_SOURCE[0]}")/../../scripts/lib/lmms.sh"
run_lmms qwen2_5_vl "$@"
