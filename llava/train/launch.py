"""torchrun without its traceback: `python -m llava.train.launch --nproc_per_node 2 -m llava.train.train ...`.

A process that fails has said why in one line; this ends with its exit code.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence

from torch.distributed import run
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

UNKNOWN_FAILURE = 1  # of a process that was killed


def main(words: Sequence[str] | None = None) -> None:
    """torchrun's `main`. Raises SystemExit with the code of the first process that failed."""
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    try:
        run.main(list(sys.argv[1:] if words is None else words))
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        raise SystemExit(failure.exitcode if failure.exitcode > 0 else UNKNOWN_FAILURE) from None


if __name__ == "__main__":
    main()
