"""VTC-Bench's protocol on the embedded model: `python -m dev.results.vtc_tiny` from the repository's root.

Writes docs/results/vtc-llava-tiny.json and its table. What is answered is not asked again: an interrupted run goes on.
"""

from __future__ import annotations

import argparse

from dart.utils import exits_cleanly
from dev.results.llava_tiny import BENCHMARKS, WORK, data_of
from dev.results.render import RESULTS_FOLDER
from llava.eval.engine.runner import Runner
from llava.eval.vtc.run import AFTER, FILTERS, MEAN, SEEDS, VOTE, Protocol, measure
from llava.files import EMBEDDED_MODEL

RESULTS = RESULTS_FOLDER / "vtc-llava-tiny.json"
RATIOS = [2, 3, 4]
# The model has six layers: at layer 2 no mean under a third of the tokens can be reached, at layer 0 every one.
STRATEGIES = ["dart@0", "dart", "fastv", "divprune", "visionzip"]
LIMIT, BATCH_SIZE = 60, 8


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=LIMIT, help="questions of each benchmark")
    args = parser.parse_args(argv)
    runner = Runner(str(EMBEDDED_MODEL), WORK, ["--batch-size", str(BATCH_SIZE), "--device", "cpu"])
    plan = argparse.Namespace(
        benchmarks=BENCHMARKS, ratio=RATIOS, filter=[*FILTERS, VOTE], strategies=STRATEGIES, budget_kinds=[MEAN, AFTER]
    )
    measure(Protocol(runner, data_of, args.limit, SEEDS), RESULTS, plan)


if __name__ == "__main__":
    main()
