"""`llava.train.train` with flash attention, where there are a GPU and the package flash-attn; otherwise with sdpa."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

import torch

from dart.utils import exits_cleanly
from llava.train.arguments import parse
from llava.train.train import say, train_and_leave


@exits_cleanly
def main(words: Sequence[str] | None = None) -> None:
    arguments = parse(sys.argv[1:] if words is None else words)
    if arguments.model.attn_implementation is None:
        flash = torch.cuda.is_available() and importlib.util.find_spec("flash_attn") is not None
        arguments.model.attn_implementation = "flash_attention_2" if flash else "sdpa"
        if not flash:
            say("train_mem: no GPU or no package flash-attn: attention is torch's sdpa")
    train_and_leave(arguments)


if __name__ == "__main__":
    main()
