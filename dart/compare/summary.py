"""From answers to figures: one cell for each data set, method and budget, and averages over the data sets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from statistics import fmean, median
from typing import Any

from dart import strategies
from dart.compare.data import DataSet
from dart.compare.plan import (
    BLIND,
    CONTROLS,
    TOLERANCE,
    UNPRUNED,
    Budget,
    Rules,
    Setting,
    asks_question,
    cell_key,
    changes_pixels,
)
from dart.compare.run import Answers
from dart.stats import RIGHT, interval, mcnemar, relative_average, wins_and_losses

MEGA = 1e6
Cell = dict[str, Any]


def grades(data: DataSet, answers: Answers, settings: Sequence[Setting]) -> dict[str, dict[str, float]]:
    """key of the setting -> sample id -> how right its answer is."""

    def texts(key: str) -> dict[str, str]:
        rows = ((sample.id, answers.rows.get((sample.id, key))) for sample in data.samples)
        return {name: row["text"] for name, row in rows if row is not None}

    return {each.key: data.grade(texts(each.key)) for each in settings}


def units_of(data: DataSet, graded: Mapping[str, float]) -> list[float]:
    """Scores of the data set's units, each the lowest of its samples'."""
    groups = groupby(data.samples, key=lambda sample: sample.counted_as)
    return [min(graded[sample.id] for sample in group) for _, group in groups]


class Summary:
    """The figures of one data set.

    refused: why a setting (its key) was not run. baseline: the method that the others are tested against, at the same
    budget.
    """

    def __init__(
        self,
        data: DataSet,
        answers: Answers,
        settings: Sequence[Setting],
        refused: Mapping[str, str],
        rules: Rules,
        baseline: str,
    ):
        self.data, self.answers, self.refused, self.rules, self.baseline = data, answers, refused, rules, baseline
        self.grades = grades(data, answers, settings)
        self.members: dict[tuple[str, Budget | None], list[Setting]] = {}
        for each in settings:
            self.members.setdefault((each.method, each.budget), []).append(each)

    @property
    def keys(self) -> dict[str, list[str]]:
        """key of a cell -> keys of its settings."""
        return {cell_key(*cell): [each.key for each in own] for cell, own in self.members.items()}

    def cells(self) -> list[Cell]:
        """A cell for each method and budget, in the settings' order; one that was not run has a `reason`."""
        made = [self._cell(method, budget) for method, budget in self.members]
        for cell in made:
            base = next((c for c in made if (c["method"], c["budget"]) == (self.baseline, cell["budget"])), None)
            if base is not None and base is not cell and self._comparable(cell) and self._comparable(base):
                cell["wins"], cell["losses"] = wins_and_losses(cell["units"], base["units"])
                cell["p"] = mcnemar(cell["wins"], cell["losses"])
        return made

    @staticmethod
    def _comparable(cell: Cell) -> bool:
        return "reason" not in cell and cell["budget"] is not None and cell["equal"]

    def _cell(self, method: str, budget: Budget | None) -> Cell:
        settings = self.members[method, budget]
        cell: Cell = {"data": self.data.name, "method": method, "budget": budget}
        if reason := next((self.refused[each.key] for each in settings if each.key in self.refused), None):
            return {**cell, "reason": reason}
        scores = [units_of(self.data, self.grades[each.key]) for each in settings]
        units = [fmean(column) for column in zip(*scores, strict=True)]
        rows = [self.answers.rows[sample.id, each.key] for each in settings for sample in self.data.samples]
        low, high = interval(units)
        per_layer = [fmean(column) for column in zip(*(row["per_layer"] for row in rows), strict=True)]
        times = [row["prefill_ms"] for row in rows if row["prefill_ms"] is not None]
        cell |= {
            "score": fmean(units),
            "low": low,
            "high": high,
            "samples": len(units),
            "units": units,
            "seeds": [fmean(each) for each in scores] if len(scores) > 1 else None,
            "mean_tokens": fmean(per_layer),
            "per_layer": [round(count, 1) for count in per_layer],
            "prefill_ms": median(times) if times else None,
            "timed": len(times),
            "select_ms": median(row["select_ms"] for row in rows),
            "kv_mb": fmean(row["kv_bytes"] for row in rows) / MEGA,
        }
        if budget is not None:
            cell |= self._budget(budget, rows)
        if self.data.official is not None and len(settings) == 1:
            texts = {sample.id: self.answers.rows[sample.id, settings[0].key]["text"] for sample in self.data.samples}
            cell["official"] = self.data.official(texts)
        return cell

    def _budget(self, budget: Budget, rows: Sequence[Mapping[str, Any]]) -> Cell:
        """What the budget asks for and what was reached, both as means over the samples."""
        asked = fmean(min(row["visual"], budget if isinstance(budget, int) else budget * row["visual"]) for row in rows)
        reached = fmean(self.rules.reached(row["per_layer"]) for row in rows)
        return {"asked": asked, "reached": reached, "equal": abs(reached - asked) <= max(1.0, TOLERANCE * asked)}


def averages(cells: Sequence[Cell], names: Sequence[str]) -> list[Cell]:
    """For each method and budget the means over the data sets `names`, of those that were run on all of them."""
    found: dict[tuple[str, Budget | None], dict[str, Cell]] = {}
    for cell in cells:
        found.setdefault((cell["method"], cell["budget"]), {})[cell["data"]] = cell
    whole = [found[UNPRUNED, None][name].get("score") for name in names]
    rows = []
    for (method, budget), own in found.items():
        scores = [own[name].get("score") for name in names]
        row: Cell = {"method": method, "budget": budget, "relative": relative_average(scores, whole)}
        if all(score is not None for score in scores):
            row |= {name: fmean(own[each][name] for each in names) for name in ("score", "mean_tokens", "select_ms")}
            times = [own[each]["prefill_ms"] for each in names]
            row["prefill_ms"] = None if None in times else fmean(times)
            row["equal"] = all(own[each].get("equal", True) for each in names)
        rows.append(row)
    return rows


def about(methods: Sequence[str]) -> dict[str, dict[str, Any]]:
    """For each method what kind of row it is; title: the first line of its file's docstring."""
    facts: dict[str, dict[str, Any]] = {
        UNPRUNED: {"title": "all visual tokens", "control": True, "question_aware": False},
        BLIND: {"title": "every picture replaced by grey, all tokens", "control": True, "question_aware": False},
    }
    for method in methods:
        module = __import__(type(strategies.get(method)).__module__, fromlist=["__doc__"])
        facts[method] = {
            "title": (module.__doc__ or "").strip().split("\n")[0],
            "control": method in CONTROLS or changes_pixels(method),
            "question_aware": asks_question(method),
        }
    return facts


def verdicts(summary: Summary) -> dict[str, list[int]]:
    """key of the cell -> for each sample 1 where the answer is right (of several seeds: of most), else 0; -1: none."""
    found = {}
    for cell, settings in summary.keys.items():
        graded = [summary.grades[key] for key in settings]
        found[cell] = [
            int(fmean(g[sample.id] for g in graded) >= RIGHT) if all(sample.id in g for g in graded) else -1
            for sample in summary.data.samples
        ]
    return found
