"""Score SEED-Bench answers and write the submission file: `python scripts/convert_seed_for_submission.py ...`."""

from __future__ import annotations

from pathlib import Path

from dart.utils import Parser, exits_cleanly
from llava.eval.engine.answers import all_lines
from llava.eval.engine.figures import emit, parts_of
from llava.eval.tasks.seed import score_answers, write_submission
from llava.files import names_its_files, read_json


@exits_cleanly
@names_its_files
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--annotation-file", required=True, help="SEED-Bench.json")
    parser.add_argument("--result-file", required=True, help="answers file")
    parser.add_argument("--result-upload-file", required=True)
    args = parser.parse_args(argv)
    annotations, answers = read_json(args.annotation_file), all_lines(Path(args.result_file))
    figures = score_answers(annotations, answers)
    write_submission(annotations, answers, Path(args.result_upload_file))
    emit(figures, parts_of(figures), None)


if __name__ == "__main__":
    main()
