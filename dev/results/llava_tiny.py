"""Accuracy of the embedded model: `python -m dev.results.llava_tiny` from the repository's root.

The suite (llava/eval/suite.py) on the mini benchmarks and on easy-VQA; finished cells are not run again while the
checkpoint is the same. Writes docs/results/llava-tiny.json with its tables, and renders docs/evidence.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dart.utils import exits_cleanly
from dev.results.render import RESULTS_FOLDER, render_all
from dev.tiny.easy_vqa import convert
from llava.eval.suite import Suite, settings_of
from llava.files import EMBEDDED_DATA, EMBEDDED_MODEL, ROOT

WORK = ROOT / "outputs" / "results"
RESULTS = RESULTS_FOLDER / "llava-tiny.json"
BENCHMARKS = ["textvqa", "pope", "mme", "easy_vqa"]
BUDGETS = [192, 128, 64]
STRATEGIES, PIVOT_ORDERS, SEEDS = ["dart", "random", "uniform"], ["original", "norm"], [0, 1, 2]
EASY_VQA_QUESTIONS = 500


def data_of(benchmark: str) -> Path:
    """Folder that holds the benchmark's folder; easy-VQA is converted from its package on first use."""
    if benchmark != "easy_vqa":
        return EMBEDDED_DATA
    if not (WORK / "data" / "easy_vqa").is_dir():
        convert("test", WORK / "data" / "easy_vqa", EASY_VQA_QUESTIONS)
    return WORK / "data"


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmarks", nargs="+", choices=BENCHMARKS, default=BENCHMARKS)
    parser.add_argument("--only", nargs="+", help="names of the settings to run, such as unpruned dart-original-128")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--overwrite", action="store_true", help="throw the results of an earlier checkpoint away")
    args = parser.parse_args(argv)
    if args.overwrite:
        RESULTS.unlink(missing_ok=True)
    settings = settings_of(STRATEGIES, BUDGETS, PIVOT_ORDERS, SEEDS, blind=True)
    chosen = [s for s in settings if not args.only or s.name in args.only]
    suite = Suite(str(EMBEDDED_MODEL), data_of, RESULTS, WORK, ["--batch-size", str(args.batch_size)])
    suite.cells(args.benchmarks, chosen)
    render_all()


if __name__ == "__main__":
    main()
