"""Turn MMBench answers into the server's spreadsheet: `python scripts/convert_mmbench_for_submission.py ...`.

Reads RESULT_DIR/EXPERIMENT.jsonl, writes UPLOAD_DIR/EXPERIMENT.xlsx.
"""

from __future__ import annotations

from pathlib import Path

from dart.utils import Parser, exits_cleanly
from llava.eval.engine.answers import all_lines
from llava.eval.tasks.mmbench import read_rows, write_submission
from llava.files import names_its_files


@exits_cleanly
@names_its_files
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--annotation-file", required=True, help="MMBench's .tsv table")
    parser.add_argument("--result-dir", required=True)
    parser.add_argument("--upload-dir", required=True)
    parser.add_argument("--experiment", required=True)
    args = parser.parse_args(argv)
    answers = all_lines(Path(args.result_dir) / f"{args.experiment}.jsonl")
    out = Path(args.upload_dir) / f"{args.experiment}.xlsx"
    write_submission(read_rows(Path(args.annotation_file)), answers, out)
    print(f"{len(answers)} answers in {out}")


if __name__ == "__main__":
    main()
