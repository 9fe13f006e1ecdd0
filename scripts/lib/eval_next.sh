# Shared by scripts/v1_6/eval/*.sh: run_benchmark of eval.sh with LLaVA-NeXT's embedded model and, without a budget, 320 tokens.
EMBEDDED=llava-next-tiny
DEFAULT_TOKENS=320
source "$(dirname "${BASH_SOURCE[0]}")/eval.sh"
