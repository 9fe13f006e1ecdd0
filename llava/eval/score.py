"""Score an answers file: `python -m llava.eval.score --task pope --data FOLDER --answers-file FILE`."""

from __future__ import annotations

import argparse
from pathlib import Path

from llava.cli_errors import exits_cleanly
from llava.eval import tasks
from llava.eval.answers import read_lines
from llava.eval.report import emit, parts_of


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", required=True)
    parser.add_argument("--data", required=True)
    parser.add_argument("--answers-file", required=True)
    parser.add_argument("--out")
    args = parser.parse_args(argv)
    figures = tasks.get(args.task).score(Path(args.data), list(read_lines(Path(args.answers_file))))
    emit(figures, parts_of(figures), args.out)


if __name__ == "__main__":
    main()
