"""Answer and score one benchmark: `python -m llava.eval.run --task textvqa --data FOLDER --model-path CKPT [...]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from llava.cli_errors import exits_cleanly
from llava.eval import tasks
from llava.eval.answers import read_lines
from llava.eval.loop import add_loop_arguments, run
from llava.eval.report import emit, parts_of


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--task", required=True)
    parser.add_argument("--data", required=True, help="folder that holds the benchmarks' folders")
    parser.add_argument("--out", help="write the figures to this file")
    add_loop_arguments(parser, files=False)
    parser.set_defaults(max_new_tokens=None)
    args = parser.parse_args(argv)
    task = tasks.get(args.task)
    files = task.examples(Path(args.data))
    args.question_file, args.image_folder = str(files.questions), str(files.images)
    args.max_new_tokens = args.max_new_tokens or task.max_new_tokens
    run(args)
    if args.num_chunks > 1:
        return
    figures = task.score(Path(args.data), list(read_lines(Path(args.answers_file))))
    emit(figures, parts_of(figures), args.out)


if __name__ == "__main__":
    main()
