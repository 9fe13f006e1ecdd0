"""Turn VQAv2 answers into the server's file: `python scripts/convert_vqav2_for_submission.py --split S --ckpt C`.

Reads DIR/answers/SPLIT/CKPT/merge.jsonl, writes DIR/answers_upload/SPLIT/CKPT.json.
"""

from __future__ import annotations

from pathlib import Path

from dart.utils import Parser, exits_cleanly, write_json
from llava.eval.engine.answers import all_lines, read_lines
from llava.eval.tasks.vqav2 import TEST, submission
from llava.files import names_its_files


@exits_cleanly
@names_its_files
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--dir", default="./playground/data/eval/vqav2")
    parser.add_argument("--ckpt", required=True)
    parser.add_argument("--split", required=True, help="such as llava_vqav2_mscoco_test-dev2015")
    args = parser.parse_args(argv)
    home = Path(args.dir)
    answers = all_lines(home / "answers" / args.split / args.ckpt / "merge.jsonl")
    asked = [row["question_id"] for row in read_lines(home / TEST)]
    out = home / "answers_upload" / args.split / f"{args.ckpt}.json"
    write_json(out, submission(asked, answers))
    print(f"{len(answers)} answers to {len(asked)} questions in {out}")


if __name__ == "__main__":
    main()
