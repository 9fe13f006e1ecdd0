"""Does a probe set test the choice of tokens? `python -m llava.eval.probe.validate [--sets needle-2x2,text]`.

Runs every set unpruned, blind, without its evidence tokens, with nothing but them, and with random at several budgets,
DART and DivPrune. A set passes when the model solves it, falls to the blind level without the evidence, and loses
nothing with the evidence alone. Tokens are dropped at the set's own layer. Finished cells are kept: an interrupted run
resumes.
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from dart.config import DartConfig
from dart.strategies.base import REGISTRY, Reduction, Strategy, Tokens
from dart.utils import Parser, UserError, add_revision, exits_cleanly, provenance, write_json
from llava.eval.engine.suite_table import BLIND, NOT_RUN, UNPRUNED, markdown
from llava.eval.probe.drawing import GRID
from llava.eval.probe.files import EVIDENCE
from llava.eval.probe.scenes import ANSWERS
from llava.eval.probe.sets import SEEDS, SETS, seed_of, split_of
from llava.eval.suite import Setting, Suite, part_of
from llava.files import EMBEDDED_MODEL, or_embedded, read_json

ORACLE = "evidence"
WITHOUT, ALONE = (Setting(name, ORACLE, keep=1) for name in ("without-evidence", "evidence-alone"))  # keep is not used
BUDGETS = (64, 32, 128, 256, 16, 8)  # of random
METHODS, KEEP = ("dart", "divprune"), 64
SOLVED = 95.0  # percent that the unpruned model must reach
SLACK = 10.0  # points between two rows that are called equal: two standard errors of 96 questions
BAND = (30.0, 50.0)  # percent of the way from blind to unpruned that random is wanted at
VERDICT = {True: "valid", False: "valid, but not local"}
DATA = Path("playground", "data", "eval")
Figures = dict[str, Any]


class Evidence(Strategy):
    """The oracle: keeps the tokens it was given, one mask (bool [N]) a prompt, in the prompts' order."""

    def __init__(self, masks: Sequence[torch.Tensor]):
        self.masks, self.asked = masks, 0

    def count(self, config: DartConfig, tokens: int, budget: float, texts: int | None = None) -> int:
        mask = self.masks[self.asked]
        if len(mask) != tokens:
            raise UserError(f"the evidence is known for images of {len(mask)} visual tokens, this model has {tokens}")
        return int(mask.sum())

    def reduce(self, tokens: Tokens) -> Reduction:
        self.asked += 1
        return Reduction(tokens.visual[self.masks[self.asked - 1].to(tokens.visual.device)])


@contextmanager
def oracle(masks: Sequence[torch.Tensor]) -> Iterator[None]:
    """Registers `Evidence` for the prompts of one run."""
    REGISTRY[ORACLE] = Evidence(masks)
    try:
        yield
    finally:
        del REGISTRY[ORACLE]


def masks_of(folder: Path, keep: bool) -> list[torch.Tensor]:
    """The evidence tokens of a split's questions, or (keep=False) all others: bool [GRID * GRID] each."""
    masks = []
    for tokens in read_json(folder / EVIDENCE)["tokens"].values():
        mask = torch.zeros(GRID * GRID, dtype=torch.bool)
        mask[tokens] = True
        masks.append(mask if keep else ~mask)
    return masks


class Validation(Suite):
    """The suite with the oracle's two rows, which are asked one question at a time, in order, from the start."""

    def _evaluate(self, benchmark: str, setting: Setting) -> Figures:
        (task, split), data, flags = part_of(benchmark), self.data_of(benchmark), self.runner.loop_flags
        if setting.strategy is None:
            return super()._evaluate(benchmark, setting)
        task.examples(data, split)
        self.runner.loop_flags = [*flags, "--pruned_layer", str(SETS[seed_of(str(split))[0]].layer)]
        try:
            if setting.strategy != ORACLE:
                return super()._evaluate(benchmark, setting)
            self.runner.loop_flags += ["--batch-size", "1", "--overwrite"]
            with oracle(masks_of(data / task.folder / str(split), setting == ALONE)):
                return super()._evaluate(benchmark, setting)
        finally:
            self.runner.loop_flags = flags

    def _write(self) -> None:
        """The figures alone: `dev.results.render` makes the table."""
        write_json(self.out, self.results | provenance())


def settings() -> list[Setting]:
    """The rows of one split."""
    chance = [Setting(f"random-{keep}", "random", keep, seed=0) for keep in BUDGETS]
    methods = [Setting(f"{name}-{KEEP}", name, KEEP, "norm") for name in METHODS]
    return [Setting(UNPRUNED), WITHOUT, ALONE, chance[0], Setting(BLIND, blind=True), *methods, *chance[1:]]


def scores_of(results: Figures, name: str) -> dict[str, float]:
    """setting -> the set's score in percent, the mean over the seeds that were run."""
    found: dict[str, list[float]] = {}
    for key, figures in results["cells"].items():
        part, setting = key.split("/")
        if "score" in figures and seed_of(part.partition(":")[2])[0] == name:
            found.setdefault(setting, []).append(figures["score"])
    return {setting: statistics.mean(scores) for setting, scores in found.items()}


def gap(scores: dict[str, float], setting: str) -> float:
    """How far a setting is on the way from no evidence (0) to the unpruned model (100)."""
    low, high = scores[WITHOUT.name], scores[UNPRUNED]
    return 100 * (scores[setting] - low) / (high - low) if high > low else 0.0


def chance_budget(scores: dict[str, float]) -> int | None:
    """The smallest budget at which random's gap is in BAND; None: at none that was run."""
    run = [keep for keep in sorted(BUDGETS) if f"random-{keep}" in scores]
    return next((keep for keep in run if BAND[0] <= gap(scores, f"random-{keep}") <= BAND[1]), None)


def faults(name: str, scores: dict[str, float]) -> list[str]:
    """What keeps a set from being valid, in words; empty for a valid one."""
    chance = 100 / len(ANSWERS[SETS[name].knobs.ask])
    found = []
    if scores[UNPRUNED] < SOLVED:
        found.append(f"the unpruned model solves {scores[UNPRUNED]:.1f} %, {SOLVED:g} are needed")
    if scores[BLIND] > chance + SLACK:
        found.append(f"{scores[BLIND]:.1f} % are right without the image, chance is {chance:.1f}")
    if scores[WITHOUT.name] > max(scores[BLIND], chance) + SLACK:
        found.append(f"{scores[WITHOUT.name]:.1f} % are right without the evidence")
    if SETS[name].local and scores[ALONE.name] < scores[UNPRUNED] - SLACK:
        found.append(f"the evidence alone gives {scores[ALONE.name]:.1f} %")
    return found


COLUMNS = [
    UNPRUNED,
    BLIND,
    WITHOUT.name,
    ALONE.name,
    *(f"random-{k}" for k in sorted(BUDGETS)),
    *(f"{m}-{KEEP}" for m in METHODS),
]


def to_markdown(results: Figures) -> str:
    """The table of a validation: of every set whose first four columns are there."""
    body = []
    for name in SETS:
        scores = scores_of(results, name)
        if not set(COLUMNS[:4]) <= set(scores):
            continue
        budget, found = chance_budget(scores), faults(name, scores)
        cells = [f"{scores[column]:.1f}" if column in scores else NOT_RUN for column in COLUMNS]
        body.append(
            [name, *cells, NOT_RUN if budget is None else str(budget), "; ".join(found) or VERDICT[SETS[name].local]]
        )
    return "\n".join(markdown(["set", *COLUMNS, "random at 30..50 %", "verdict"], body))


def _names(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", type=or_embedded, default=str(EMBEDDED_MODEL), help="checkpoint folder or hub name")
    add_revision(parser)
    parser.add_argument("--data", type=Path, default=DATA, help="folder in which the sets are made")
    parser.add_argument("--sets", type=_names, default=list(SETS))
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help=f"data seeds, 1 to {len(SEEDS)}")
    parser.add_argument("--chunks", type=int, default=1, help="N: ask the first 1/N of a set's questions")
    parser.add_argument("--out", type=Path, help="the results' JSON file")
    parser.add_argument("--batch-size", default="16")
    args = parser.parse_args(argv)
    if unknown := [name for name in args.sets if name not in SETS]:
        raise UserError(f"--sets: unknown {', '.join(unknown)}; known: {', '.join(SETS)}")
    if not 1 <= args.seeds <= len(SEEDS):
        raise UserError(f"--seeds must be 1 to {len(SEEDS)}, got {args.seeds}")
    out = args.out or Path("outputs", "probe") / f"{Path(args.ckpt).name}.json"
    work = out.parent / f"{out.stem}-answers"
    flags = ["--batch-size", args.batch_size, "--num-chunks", str(args.chunks)]
    flags += ["--revision", args.revision] if args.revision else []
    suite = Validation(args.ckpt, lambda _: args.data, out, work, flags)
    splits = [f"probe:{split_of(name, seed)}" for seed in SEEDS[: args.seeds] for name in args.sets]
    suite.cells(splits, settings())
    print(to_markdown(suite.results))
    print(
        json.dumps({"results": str(out), "invalid": [n for n in args.sets if faults(n, scores_of(suite.results, n))]})
    )


if __name__ == "__main__":
    main()
