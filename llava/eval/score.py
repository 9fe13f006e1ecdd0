"""Score an answers file: `python -m llava.eval.score --task pope --data FOLDER --answers-file FILE`."""

from __future__ import annotations

from pathlib import Path

from dart.utils import Parser, exits_cleanly
from llava.eval import tasks
from llava.files import names_its_files


@exits_cleanly
@names_its_files
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--task", required=True)
    parser.add_argument("--data", required=True, help="folder that holds the benchmarks' folders")
    parser.add_argument("--split", help="part of the benchmark, such as val; by default the first that is installed")
    parser.add_argument("--answers-file", required=True)
    parser.add_argument("--out", help="write the figures to this file")
    args = parser.parse_args(argv)
    tasks.get(args.task).finish(Path(args.data), Path(args.answers_file), args.split, args.out)


if __name__ == "__main__":
    main()
