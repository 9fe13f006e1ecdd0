"""Make MM-Vet's submission file from answers: `python scripts/convert_mmvet_for_eval.py --src ... --dst ...`."""

from __future__ import annotations

from pathlib import Path

from dart.utils import Parser, exits_cleanly, write_json
from llava.eval.engine.answers import all_lines
from llava.eval.tasks.mmvet import submission
from llava.files import names_its_files


@exits_cleanly
@names_its_files
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--src", required=True, help="answers file")
    parser.add_argument("--dst", required=True)
    args = parser.parse_args(argv)
    write_json(Path(args.dst), submission(all_lines(Path(args.src))))


if __name__ == "__main__":
    main()
