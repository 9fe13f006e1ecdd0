"""Grade MM-Vet's submission file: `python -m llava.eval.eval_mmvet --mmvet_path FOLDER --result_file FILE`.

The judge is any OpenAI-compatible endpoint (llava/eval/engine/judge.py); grades that are there already are kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import llava.eval.tasks.mmvet as bench
from dart.utils import Parser, exits_cleanly, write_json
from llava.eval.engine.figures import emit, parts_of
from llava.eval.engine.judge import Judge
from llava.files import names_its_files, read_json


@exits_cleanly
@names_its_files
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mmvet_path", required=True, help="folder that holds mm-vet.json")
    parser.add_argument("--result_file", required=True, help="the submission file")
    parser.add_argument("--result_path", default="results", help="folder for the grades")
    parser.add_argument("--gpt_model", default=bench.OFFICIAL_JUDGE, help="the judge, unless JUDGE_MODEL is set")
    args = parser.parse_args(argv)
    truth, results = read_json(Path(args.mmvet_path) / bench.TRUTH), read_json(args.result_file)
    judge = Judge.from_environment(args.gpt_model)
    stem = Path(args.result_path) / f"{Path(args.result_file).stem}_{judge.model.replace('/', '_')}-grade"
    grades = bench.grade_all(truth, results, judge, stem.with_name(stem.name + ".jsonl"))
    # The official grader's file: a list for each of its runs, of which we make one.
    lists = {name: {key: [row[key]] for key in ("model", "content", "score")} for name, row in grades.items()}
    write_json(stem.with_name(stem.name + "-1runs.json"), lists)
    figures = bench.figures_of(truth, grades)
    emit(figures, parts_of(figures), None)


if __name__ == "__main__":
    main()
