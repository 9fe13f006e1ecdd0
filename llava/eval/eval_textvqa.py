"""Score TextVQA answers: `python -m llava.eval.eval_textvqa --annotation-file ... --result-file ...`."""

from __future__ import annotations

from pathlib import Path

from dart.utils import Parser, UserError, exits_cleanly
from llava.eval.engine.answers import all_lines
from llava.eval.engine.figures import emit
from llava.eval.tasks.textvqa import score_answers
from llava.files import names_its_files, read_json


@exits_cleanly
@names_its_files
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--annotation-file", required=True)
    parser.add_argument("--result-file")
    parser.add_argument("--result-dir", help="score every .jsonl file in a folder")
    parser.add_argument("--out")
    args = parser.parse_args(argv)
    if not args.result_file and not args.result_dir:
        raise UserError("give --result-file or --result-dir")
    files = sorted(Path(args.result_dir).glob("*.jsonl")) if args.result_dir else [Path(args.result_file)]
    if not files:
        raise UserError(f"{args.result_dir} has no .jsonl file; name the folder of the answers files")
    annotations = read_json(Path(args.annotation_file))
    results = {path.stem: score_answers(annotations, all_lines(path)) for path in files}
    rows = [{"file": name, "samples": r["samples"], "accuracy %": r["score"]} for name, r in results.items()]
    emit(results if args.result_dir else results[files[0].stem], rows, args.out)


if __name__ == "__main__":
    main()
