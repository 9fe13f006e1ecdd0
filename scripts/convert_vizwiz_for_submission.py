"""Turn VizWiz test answers into the server's file: `python scripts/convert_vizwiz_for_submission.py ...`."""

from __future__ import annotations

from pathlib import Path

from dart.utils import Parser, exits_cleanly, write_json
from llava.eval.engine.answers import all_lines
from llava.eval.tasks.vizwiz import submission
from llava.files import names_its_files


@exits_cleanly
@names_its_files
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--annotation-file", required=True, help="LLaVA's question file, llava_test.jsonl")
    parser.add_argument("--result-file", required=True, help="answers file")
    parser.add_argument("--result-upload-file", required=True)
    args = parser.parse_args(argv)
    rows = submission(all_lines(Path(args.annotation_file)), all_lines(Path(args.result_file)))
    write_json(Path(args.result_upload_file), rows)
    print(f"{len(rows)} answers in {args.result_upload_file}")


if __name__ == "__main__":
    main()
