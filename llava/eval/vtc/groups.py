"""Difficult and simple questions, and what a method answers of each. Right and wrong in, figures out: no files."""

from __future__ import annotations

import statistics
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from dart.stats import mcnemar, wilson
from dart.utils import UserError

RATIOS = (2, 3, 4, 5, 10)  # D, per side: 25, 11.11, 6.25, 4 and 1 % of the tokens
FLOOR = 30  # difficult questions below which there is no verdict
TOLERANCE = 0.05  # by which the tokens of two runs may differ
SIGNIFICANT = 0.05
NAMED = 3  # questions that a note names
DECIMALS = 2
EXCESS_DIGITS = 6
ORIGINAL, FILTER = "original", "filter"

Key = tuple[Any, ...]  # (benchmark, question id, prompt, how often it was asked before)


class Answer(NamedTuple):
    """One question's. right: by the benchmark's own rule; tokens: visual ones, as a mean over the layers, and before:
    those the image has, where they were counted; model: who answered, where it is told."""

    right: bool
    text: str = ""
    tokens: float | None = None
    before: float | None = None
    model: str = ""


Run = Mapping[Key, Answer]


class Groups(NamedTuple):
    """Questions that the original answers: difficult ("A"), which the filter does not, and simple ("B"), which it does.

    filter: the filter's answers.
    """

    difficult: list[Key]
    simple: list[Key]
    filter: Run


def aligned(runs: Mapping[str, Run]) -> tuple[dict[str, Run], list[str]]:
    """The runs on the questions that all of them answer, and a note for every run that lacks some or has others.

    Raises UserError when no question is in all of them.
    """
    asked = runs[ORIGINAL]
    common = [key for key in asked if all(key in run for run in runs.values())]
    notes = []
    for name, run in runs.items():
        missing, others = [key for key in asked if key not in run], [key for key in run if key not in asked]
        if missing:
            notes.append(f"{name} lacks {_named(missing)} of {len(asked)}: in no row, as if they had not been asked")
        if others:
            notes.append(f"{name} answers {_named(others)} that {ORIGINAL} does not: not looked at")
    if not common:
        raise UserError(
            f"no question is answered in all of {', '.join(runs)}: are they of the same benchmark and split?"
        )
    return {name: {key: run[key] for key in common} for name, run in runs.items()}, notes


def _named(keys: Sequence[Key]) -> str:
    few = ", ".join(str(key[1]) for key in keys[:NAMED])
    return f"{len(keys)} question{'s' if len(keys) > 1 else ''} ({few}{', ...' if len(keys) > NAMED else ''})"


def vote(runs: Sequence[Run]) -> Run:
    """A filter of several: right where more than half of the runs are. It has no tokens of its own."""
    return {key: Answer(2 * sum(run[key].right for run in runs) > len(runs)) for key in runs[0]}


def split(original: Run, discriminator: Run) -> Groups:
    """The groups. What the original gets wrong is in neither."""
    known = [key for key, answer in original.items() if answer.right]
    return Groups(
        [key for key in known if not discriminator[key].right],
        [key for key in known if discriminator[key].right],
        discriminator,
    )


def majority(original: Run, keys: Sequence[Key]) -> float | None:
    """The share of a group that the best constant answer to each benchmark gets right; None of nothing.

    The original is right on all of them, so that its answers, without case and final stop, are the true ones.
    """
    texts: dict[Any, Counter[str]] = defaultdict(Counter)
    for key in keys:
        texts[key[0]][original[key].text.strip().rstrip(".").lower()] += 1
    return sum(max(count.values()) for count in texts.values()) / len(keys) if keys else None


def _mean(values: Iterator[float | None]) -> float | None:
    """None where a value is."""
    known = list(values)
    return None if not known or None in known else statistics.mean(v for v in known if v is not None)


def tokens_of(run: Run) -> float | None:
    """Visual tokens of a question, as a mean over layers and questions; None where some were not counted."""
    return _mean(answer.tokens for answer in run.values())


def _share(runs: Sequence[Run], keys: Sequence[Key]) -> dict[str, Any]:
    """Accuracy of a group in percent with its interval; right: the mean over the runs."""
    right = statistics.mean(sum(run[key].right for key in keys) for run in runs)
    interval = [round(100 * bound, DECIMALS) for bound in wilson(right, len(keys))]
    accuracy = round(100 * right / len(keys), DECIMALS) if keys else None
    return {"samples": len(keys), "right": round(right, DECIMALS), "accuracy": accuracy, "interval_95": interval}


def row_of(name: str, runs: Sequence[Run], groups: Groups, budget: float | None) -> dict[str, Any]:
    """The figures of one method; runs: of its seeds.

    wins, losses: questions that it gets right and the filter wrong, and the other way round, as means over the seeds.
    p: of McNemar's exact test, the largest of the seeds. excess: by how much its tokens differ from the budget.
    """
    wins = [sum(run[key].right for key in groups.difficult) for run in runs]
    losses = [sum(not run[key].right for key in groups.simple) for run in runs]
    tokens = _mean(tokens_of(run) for run in runs)
    excess = None if tokens is None or not budget else round(tokens / budget - 1, EXCESS_DIGITS)
    row = {
        "name": name,
        "runs": len(runs),
        "A": _share(runs, groups.difficult),
        "B": _share(runs, groups.simple),
        "wins": round(statistics.mean(wins), DECIMALS),
        "losses": round(statistics.mean(losses), DECIMALS),
        "p": max(mcnemar(*counts) for counts in zip(wins, losses, strict=True)),
        "tokens": tokens,
        "excess": excess,
    }
    return row | {"verdict": _verdict(row)}


def _verdict(row: Mapping[str, Any]) -> str:
    """What can be said of a method beside the filter."""
    found = row["A"]["samples"]
    if row["name"] == FILTER:
        return "the filter: 0 and 100 by construction"
    if found < FLOOR:
        return f"no verdict: n_A = {found} is under {FLOOR}"
    words = "no difference shown"
    if row["p"] < SIGNIFICANT:
        words = "better than the filter" if row["wins"] > row["losses"] else "worse than the filter"
    excess = row["excess"]
    return words if excess is None or abs(excess) <= TOLERANCE else f"{words}, with {excess:+.0%} tokens"


def compare(runs: Mapping[str, Sequence[Run]], discriminator: Run, budget: float | None) -> dict[str, Any]:
    """Groups, levels and the row of every method. runs: name -> its seeds' runs, with ORIGINAL, aligned.

    budget: visual tokens that the methods are to have, as a mean over layers; None: the filter's own were not counted.
    """
    original = runs[ORIGINAL][0]
    groups = split(original, discriminator)
    notes = []
    rows = [row_of(FILTER, [discriminator], groups, budget)]
    for name, own in runs.items():
        if name == ORIGINAL:
            continue
        rows.append(row := row_of(name, own, groups, budget))
        if row["excess"] is not None and abs(row["excess"]) > TOLERANCE:
            notes.append(
                f"{name} had {row['tokens']:.1f} visual tokens in the mean, the budget is {budget:.1f}: "
                f"{row['excess']:+.1%}, not the same budget"
            )
    levels = {"A": majority(original, groups.difficult), "B": majority(original, groups.simple)}
    return {
        "samples": len(original),
        "original_right": len(groups.difficult) + len(groups.simple),
        "n_A": len(groups.difficult),
        "n_B": len(groups.simple),
        "budget": budget,
        "majority": {name: None if level is None else round(100 * level, DECIMALS) for name, level in levels.items()},
        "rows": rows,
        "notes": notes,
    }
