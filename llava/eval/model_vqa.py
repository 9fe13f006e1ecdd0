"""Answer a question file with long answers: `python -m llava.eval.model_vqa --model-path ... --question-file ...`."""

from __future__ import annotations

from dart.utils import Parser, exits_cleanly
from llava.eval.engine.loop import add_loop_arguments, run

LONG_ANSWER = 1024


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    add_loop_arguments(parser)
    parser.set_defaults(max_new_tokens=LONG_ANSWER)
    run(parser.parse_args(argv))


if __name__ == "__main__":
    main()
