"""Have a language model rate pairs of answers: `python -m llava.eval.eval_gpt_review_bench -q ... -a REFERENCE OURS`.

The judge is any OpenAI-compatible endpoint (llava/eval/engine/judge.py); reviews that are there already are kept.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import llava.eval.tasks.llavabench as bench
from dart.utils import Parser, exits_cleanly
from llava.eval.engine.answers import all_lines
from llava.eval.engine.judge import Judge
from llava.files import names_its_files, read_json


@exits_cleanly
@names_its_files
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-q", "--question", required=True, help="questions.jsonl")
    parser.add_argument("-c", "--context", required=True, help="context.jsonl: what the pictures show")
    parser.add_argument("-a", "--answer-list", nargs=2, required=True, metavar=("REFERENCE", "OURS"))
    parser.add_argument("-r", "--rule", default=str(bench.RULES), help="the judge's instructions by category")
    parser.add_argument("-o", "--output", required=True, help="reviews; appended to")
    parser.add_argument("--max-tokens", type=int, default=bench.REVIEW_TOKENS)
    args = parser.parse_args(argv)
    questions, contexts, reference, ours = (
        all_lines(Path(path).expanduser()) for path in (args.question, args.context, *args.answer_list)
    )
    rules = read_json(Path(args.rule).expanduser())
    judge = Judge.from_environment(bench.OFFICIAL_JUDGE)
    output = Path(args.output).expanduser()
    reviews = bench.review_all(questions, contexts, (reference, ours), rules, judge, output, args.max_tokens)
    print(f"{len(reviews)} reviews by {judge.model} in {output}")


if __name__ == "__main__":
    main()
