"""Answer a question file: `python -m llava.eval.model_vqa_loader --model-path ... --question-file ...`."""

from __future__ import annotations

from dart.utils import Parser, exits_cleanly
from llava.eval.engine.loop import add_loop_arguments, run


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    add_loop_arguments(parser)
    run(parser.parse_args(argv))


if __name__ == "__main__":
    main()
