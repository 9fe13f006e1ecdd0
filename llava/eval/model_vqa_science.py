"""Answer ScienceQA: `python -m llava.eval.model_vqa_science --question-file llava_test_CQM-A.json ...`."""

from __future__ import annotations

from pathlib import Path

from dart.utils import Parser, exits_cleanly
from llava.eval.engine.loop import add_loop_arguments, run
from llava.eval.model_vqa import LONG_ANSWER
from llava.eval.tasks.sqa import read_questions
from llava.files import official_form


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    add_loop_arguments(parser)
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter alone")
    parser.add_argument("--answer-prompter", action="store_true", help="accepted and ignored, as in LLaVA-1.5")
    parser.set_defaults(max_new_tokens=LONG_ANSWER)
    args = parser.parse_args(argv)
    with official_form(args.question_file):
        examples = read_questions(Path(args.question_file), Path(args.image_folder), args.single_pred_prompt)
    run(args, examples=examples)


if __name__ == "__main__":
    main()
