"""MME's score from its result files: `python -m llava.eval.eval_mme --results_dir FOLDER` (one <subtask>.txt each)."""

from __future__ import annotations

from pathlib import Path

from dart.utils import Parser, UserError, exits_cleanly
from llava.eval.engine.figures import emit
from llava.eval.tasks.mme import score_rows
from llava.files import names_its_files

FIELDS = 4


@exits_cleanly
@names_its_files
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--results_dir", required=True)
    parser.add_argument("--out")
    args = parser.parse_args(argv)
    files = sorted(Path(args.results_dir).glob("*.txt"))
    if not files:
        raise UserError(
            f"{args.results_dir} has no <subtask>.txt file; make them with python -m llava.eval.convert_answer_to_mme"
        )
    rows = []
    for path in files:
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            parts = line.split("\t")
            if len(parts) != FIELDS:
                raise UserError(
                    f"{path} line {number} has {len(parts)} fields; expected picture, question, truth, answer"
                )
            rows.append((path.stem, parts[0], parts[2], parts[3]))
    result = score_rows(rows)
    table = [{"subtask": name, **row} for name, row in result["subtasks"].items()]
    emit(result, table, args.out)


if __name__ == "__main__":
    main()
