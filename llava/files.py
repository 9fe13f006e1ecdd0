"""The embedded model and data, and reading files that a user brings, with errors that name them."""

from __future__ import annotations

import argparse
import csv
import functools
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from dart.utils import UserError, one_line
from dart.utils import fingerprint as fingerprint
from dart.utils import read_json as read_json

ROOT = Path(__file__).resolve().parents[1]
EMBEDDED_MODEL, EMBEDDED_DATA = ROOT / "playground" / "models" / "llava-tiny", ROOT / "playground" / "data" / "mini"
# What readers of a benchmark's files raise for files of another form.
NOT_OFFICIAL = (AttributeError, KeyError, IndexError, TypeError, UnicodeError, RecursionError, csv.Error)


def or_embedded(text: str) -> str:
    """The type of an argument whose default is the embedded model or data.

    Raises ArgumentTypeError where these are not: they come with the repository, not with the installed package.
    """
    if Path(text) in (EMBEDDED_MODEL, EMBEDDED_DATA) and not Path(text).is_dir():
        raise argparse.ArgumentTypeError(
            f"the default, {Path(text).relative_to(ROOT)}, comes with the repository and not with the installed "
            "package: name your own, or run this in a clone"
        )
    return text


@contextmanager
def official_form(*paths: str | Path) -> Iterator[None]:
    """Around code that only reads files: what files of another form make it raise is a UserError that names them."""
    try:
        yield
    except NOT_OFFICIAL as error:
        named = ", ".join(map(str, paths)) or "a file that is given"
        raise UserError(
            f"not of the official form: {named} ({type(error).__name__}: {one_line(error)}); get it again"
        ) from error


def names_its_files(main: Callable[[Sequence[str] | None], None]) -> Callable[[Sequence[str] | None], None]:
    """Decorate the `main` of a command that only reads files and scores or converts them: see `official_form`."""

    @functools.wraps(main)
    def wrapper(argv: Sequence[str] | None = None) -> None:
        words = sys.argv[1:] if argv is None else argv
        files = [word for word in words if Path(word).exists()]
        try:
            with official_form(*files):
                main(argv)
        except UserError as error:
            if not files or any(file in str(error) for file in files):
                raise
            raise UserError(f"{error} (of {', '.join(files)})") from error

    return wrapper
