"""Turn an answers file into MME's result files: `python -m llava.eval.convert_answer_to_mme --experiment NAME`.

As LLaVA's, it is run in the MME folder and reads answers/NAME.jsonl; --data-dir, --answers-file and --out-dir name
other places. One file per subtask, ready for `python -m llava.eval.eval_mme`.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from dart.utils import Parser, UserError, exits_cleanly
from llava.eval.engine.answers import read_lines
from llava.eval.tasks.mme import IMAGES, SUFFIX, read_truth, truth_of
from llava.files import names_its_files


@exits_cleanly
@names_its_files
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--experiment", required=True)
    parser.add_argument("--data-dir", default=".", help="the MME folder")
    parser.add_argument("--answers-file")
    parser.add_argument("--out-dir")
    args = parser.parse_args(argv)
    data = Path(args.data_dir)
    if not (data / IMAGES).is_dir():
        raise UserError(f"{data / IMAGES} does not exist; run this in the MME folder or name it with --data-dir")
    answers = Path(args.answers_file or data / "answers" / f"{args.experiment}.jsonl")
    truth = read_truth(data / IMAGES)
    lines: dict[str, list[str]] = defaultdict(list)
    for row in read_lines(answers):
        subtask, _, label = truth_of(truth, row)
        picture = str(row["question_id"]).split("/", 1)[1]
        fields = (picture, row["prompt"].removesuffix(SUFFIX), label, row["text"])
        lines[subtask].append("\t".join(" ".join(f.split()) for f in fields) + "\n")
    out = Path(args.out_dir or data / "eval_tool" / "answers" / args.experiment)
    out.mkdir(parents=True, exist_ok=True)
    for subtask, rows in lines.items():
        (out / f"{subtask}.txt").write_text("".join(rows), encoding="utf-8")
    print(f"{sum(map(len, lines.values()))} answers of {len(lines)} subtasks in {out}")


if __name__ == "__main__":
    main()
