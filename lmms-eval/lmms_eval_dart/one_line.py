"""Bad input ends the process with one line: lmms-eval itself prints a traceback and exits with code 0."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from tqdm import tqdm

from dart.utils import USAGE_ERROR, UserError, one_line

P = ParamSpec("P")
R = TypeVar("R")


def ends_in_one_line(method: Callable[P, R]) -> Callable[P, R]:
    """Decorate a method that lmms-eval calls: a UserError prints `error: ...` and exits with code 2."""

    @functools.wraps(method)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return method(*args, **kwargs)
        except UserError as error:
            tqdm.write(f"error: {one_line(error)}", file=sys.stderr)  # below a progress bar, not within it
            raise SystemExit(USAGE_ERROR) from error

    return wrapper
