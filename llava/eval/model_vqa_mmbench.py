"""Answer an MMBench table: `python -m llava.eval.model_vqa_mmbench --question-file mmbench_dev_20230712.tsv ...`."""

from __future__ import annotations

from pathlib import Path

from dart.utils import Parser, exits_cleanly
from llava.eval.engine.loop import add_loop_arguments, run
from llava.eval.model_vqa import LONG_ANSWER
from llava.eval.tasks.mmbench import questions_of, read_rows
from llava.files import official_form


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    add_loop_arguments(parser, files=False)
    parser.add_argument("--question-file", required=True, help="MMBench's .tsv table")
    parser.add_argument("--image-folder", help="accepted and ignored: the pictures are in the table")
    parser.add_argument("--all-rounds", action="store_true", help="ask once per option, the options rotated")
    parser.add_argument("--single-pred-prompt", action="store_true", help="ask for the option's letter alone")
    parser.add_argument("--lang", choices=("en", "cn"), default="en")
    parser.set_defaults(max_new_tokens=LONG_ANSWER)
    args = parser.parse_args(argv)
    with official_form(args.question_file):
        rows = read_rows(Path(args.question_file))
        examples = questions_of(rows, args.lang, args.single_pred_prompt, args.all_rounds)
    run(args, examples=examples)


if __name__ == "__main__":
    main()
