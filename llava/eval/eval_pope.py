"""Score POPE answers: `python -m llava.eval.eval_pope --annotation-dir ... --question-file ... --result-file ...`."""

from __future__ import annotations

from pathlib import Path

from dart.utils import Parser, exits_cleanly
from llava.eval.engine.answers import all_lines
from llava.eval.engine.figures import emit
from llava.eval.tasks.pope import score_answers
from llava.files import names_its_files


@exits_cleanly
@names_its_files
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--annotation-dir", required=True)
    parser.add_argument("--question-file", required=True)
    parser.add_argument("--result-file", required=True)
    parser.add_argument("--out")
    args = parser.parse_args(argv)
    result = score_answers(Path(args.annotation_dir), Path(args.question_file), all_lines(Path(args.result_file)))
    emit(result, [{"category": name, **row} for name, row in result["categories"].items()], args.out)


if __name__ == "__main__":
    main()
