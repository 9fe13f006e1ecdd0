"""Answer and score one benchmark: `python -m llava.eval.run --task textvqa --data FOLDER --model-path CKPT [...]`."""

from __future__ import annotations

from pathlib import Path

from dart.utils import Parser, exits_cleanly
from llava.eval import tasks
from llava.eval.engine.loop import add_loop_arguments, run


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--task", required=True, help="a benchmark; a wrong name lists all")
    parser.add_argument("--data", required=True, help="folder that holds the benchmarks' folders")
    parser.add_argument("--split", help="part of the benchmark, such as val; by default the first that is installed")
    parser.add_argument("--out", help="write the figures to this file")
    add_loop_arguments(parser, files=False)
    parser.set_defaults(max_new_tokens=None, conv_mode=None)
    args = parser.parse_args(argv)
    task, data = tasks.get(args.task), Path(args.data)
    split = task.split(data, args.split)
    examples = task.examples(data, split)
    task.complete(args, data, split)
    outcome = run(args, examples=examples)
    if outcome.complete and args.num_chunks == 1:
        task.finish(data, Path(args.answers_file), split, args.out)


if __name__ == "__main__":
    main()
