"""Turn an answers file into GQA's prediction file: `python scripts/convert_gqa_for_eval.py --src X --dst Y`."""

from __future__ import annotations

from pathlib import Path

from dart.utils import Parser, exits_cleanly, write_json
from llava.eval.engine.answers import all_lines
from llava.eval.tasks.gqa import predictions
from llava.files import names_its_files


@exits_cleanly
@names_its_files
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--src", required=True, help="answers file")
    parser.add_argument("--dst", required=True, help="such as gqa/data/testdev_balanced_predictions.json")
    args = parser.parse_args(argv)
    rows = predictions(all_lines(Path(args.src)))
    write_json(Path(args.dst), rows)
    print(f"{len(rows)} predictions in {args.dst}")


if __name__ == "__main__":
    main()
