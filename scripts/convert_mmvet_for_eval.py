"""Make MM-Vet's submission file from answers: `python scripts/convert_mmvet_for_eval.py --src ... --dst ...`."""

from __future__ import annotations

import argparse
from pathlib import Path

from dart.utils import exits_cleanly, write_json
from llava.eval.engine.answers import read_lines
from llava.eval.tasks.mmvet import submission


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--src", required=True, help="answers file")
    parser.add_argument("--dst", required=True)
    args = parser.parse_args(argv)
    write_json(Path(args.dst), submission(list(read_lines(Path(args.src)))))


if __name__ == "__main__":
    main()
