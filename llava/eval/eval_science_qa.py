"""Score ScienceQA answers: `python -m llava.eval.eval_science_qa --base-dir scienceqa --result-file ANSWERS ...`."""

from __future__ import annotations

from pathlib import Path

from dart.utils import Parser, exits_cleanly, write_json
from llava.eval.engine.answers import all_lines
from llava.eval.engine.figures import emit, parts_of
from llava.eval.tasks.sqa import figures_of, is_right, judge, problems_of
from llava.files import names_its_files


@exits_cleanly
@names_its_files
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--base-dir", required=True, help="folder with problems.json and pid_splits.json")
    parser.add_argument("--result-file", required=True)
    parser.add_argument("--output-file", help="write the right and the wrong answers to this file")
    parser.add_argument("--output-result", help="write the chosen options by question to this file")
    parser.add_argument("--split", default="test")
    args = parser.parse_args(argv)
    rows = judge(problems_of(Path(args.base_dir), args.split), all_lines(Path(args.result_file)))
    shown = [({k: v for k, v in row.items() if k != "index"}, is_right(row)) for row in rows]
    right = sum(hit for _, hit in shown)
    if args.output_file:
        sides = {"correct": [r for r, hit in shown if hit], "incorrect": [r for r, hit in shown if not hit]}
        write_json(Path(args.output_file), sides)
    if args.output_result:
        result = {
            "acc": 100 * right / max(1, len(rows)),
            "correct": right,
            "count": len(rows),
            "results": {row["question_id"]: row["index"] for row in rows},
            "outputs": {row["question_id"]: row["pred"] for row in rows},
        }
        write_json(Path(args.output_result), result)
    figures = figures_of(rows)
    emit(figures, parts_of(figures), None)


if __name__ == "__main__":
    main()
