"""What every command of this project shares: one clear line for each mistake that a user can make."""

from __future__ import annotations

import argparse
import functools
import sys
from collections.abc import Callable
from typing import NoReturn, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
USAGE_ERROR = 2
INTERRUPTED = 130


class UserError(Exception):
    """Bad input: the message names the input, what was expected and what to do."""


class Parser(argparse.ArgumentParser):
    """Raises UserError for bad arguments, so that they too end in one line."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the options)")


def one_line(error: BaseException) -> str:
    """The error's message without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def exits_cleanly(main: Callable[P, R]) -> Callable[P, R]:
    """Decorate a command's `main`: bad input prints `error: ...` and exits with code 2, Ctrl-C exits with code 130.

    Bad input: UserError, ValueError, and OSError (a missing file, a full disk).
    """

    @functools.wraps(main)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            return main(*args, **kwargs)
        except (UserError, ValueError, OSError) as error:
            print(f"error: {one_line(error)}", file=sys.stderr)
            raise SystemExit(USAGE_ERROR) from None
        except KeyboardInterrupt:
            print("interrupted; run the same command again to resume", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None

    return wrapper
