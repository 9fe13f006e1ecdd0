"""Answer Q-Bench: `python -m llava.eval.model_vqa_qbench --questions-file llvisionqa_dev.json ...`.

The submission file is written beside the answers when all questions are answered.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dart.utils import Parser, exits_cleanly
from llava.eval.engine.answers import all_lines
from llava.eval.engine.figures import UPLOADS
from llava.eval.engine.loop import add_loop_arguments, run
from llava.eval.tasks.qbench import FIELDS, REQUESTS, QBenchBase, read_entries, read_questions, write_submission
from llava.files import official_form


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_loop_arguments(parser, files=False)
    parser.add_argument("--image-folder", required=True)
    parser.add_argument("--questions-file", "--question-file", dest="question_file", required=True)
    parser.add_argument("--lang", choices=tuple(REQUESTS), default="en")
    parser.set_defaults(max_new_tokens=QBenchBase.max_new_tokens, conv_mode=QBenchBase.conv_mode)
    args = parser.parse_args(argv)
    questions, answers = Path(args.question_file), Path(args.answers_file)
    with official_form(questions):
        examples = read_questions(questions, Path(args.image_folder), args.lang)
    outcome = run(args, examples=examples)
    if outcome.complete and args.num_chunks == 1:
        upload = answers.parent / UPLOADS / f"{answers.stem}.jsonl"
        write_submission(read_entries(questions, FIELDS), all_lines(answers), upload)
        print(f"submission file: {upload}")


if __name__ == "__main__":
    main()
