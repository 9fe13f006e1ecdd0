"""The tables of docs/beyond-dart.md from docs/results/beyond*.json: `python -m dev.results.beyond_table`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

from dart.stats import bootstrap, wilson
from dart.utils import exits_cleanly, write_text
from dev.results.beyond import ABLATION, BEFORE, CONTROLS
from dev.results.render import RESULTS_FOLDER
from dev.results.speed import DOCS, replaced
from llava.eval.engine.suite_table import UNPRUNED, markdown
from llava.files import read_json

PAGE = DOCS / "beyond-dart.md"
SPREAD = "spread"


class Cell(NamedTuple):
    """Where answers come from: one sample of questions of one set, asked of one model at one budget."""

    model: str
    task: str
    seed: str
    budget: str


def difference(ours: str, theirs: str) -> tuple[float, float, float]:
    """Mean difference of right answers to the same questions, and its 95 % bootstrap interval."""
    gaps = [int(a) - int(b) for a, b in zip(ours, theirs, strict=True)]
    return sum(gaps) / len(gaps), *bootstrap(gaps)


def answers_of(results: Mapping[str, Any]) -> dict[str, dict[Cell, str]]:
    """setting -> cell -> marks."""
    found: dict[str, dict[Cell, str]] = defaultdict(dict)
    for key, figures in results["cells"].items():
        model, task, seed, setting, budget = key.split("/")
        found[setting][Cell(model, task, seed, budget)] = figures["right"]
    return found


def _pooled(cells: Mapping[Cell, str], chosen: Sequence[Cell]) -> str:
    return "".join(cells[cell] for cell in chosen)


def _budgets(cells: Iterable[Cell]) -> list[str]:
    """Tokens after layer K, falling."""
    return sorted({cell.budget for cell in cells if cell.budget.isdigit()}, key=int, reverse=True)


def accuracy(results: Mapping[str, Any], settings: Sequence[str]) -> str:
    """A block for each model and question set, a row for each setting, a column for each budget."""
    found = answers_of(results)
    budgets = _budgets(cell for cells in found.values() for cell in cells)
    body: list[list[str]] = []
    for model, task in dict.fromkeys((cell.model, cell.task) for cell in found[SPREAD]):
        body.append([f"*{model}, {task}*", *[""] * len(budgets)])
        for name in settings:
            row = [
                [cell for cell in found[name] if (cell.model, cell.task) == (model, task) and cell.budget in (b, "all")]
                for b in budgets
            ]
            if any(row):
                body.append([name, *(_share(_pooled(found[name], chosen)) for chosen in row)])
    return "\n".join(markdown(["strategy", *(f"{budget} tokens" for budget in budgets)], body))


def _share(marks: str) -> str:
    if not marks:
        return ""
    low, high = wilson(marks.count("1"), len(marks))
    return f"{100 * marks.count('1') / len(marks):.1f} ({100 * low:.0f} to {100 * high:.0f})"


def differences(results: Mapping[str, Any], settings: Sequence[str], ours: str = SPREAD) -> str:
    """`ours` less each setting, over the questions of all models and sets that both have answered."""
    found = answers_of(results)
    budgets = _budgets(found[ours])
    body = []
    for name in settings:
        both = [[cell for cell in found[ours] if cell.budget == b and cell in found[name]] for b in budgets]
        if name != ours and any(both):
            body.append([name, *(_gap(found[ours], found[name], chosen) for chosen in both)])
    return "\n".join(markdown([f"{ours} less", *(f"{budget} tokens" for budget in budgets)], body))


def _gap(ours: Mapping[Cell, str], theirs: Mapping[Cell, str], chosen: Sequence[Cell]) -> str:
    if not chosen:
        return ""
    marks = _pooled(ours, chosen)
    mean, low, high = difference(marks, _pooled(theirs, chosen))
    return f"{100 * mean:+.1f} ({100 * low:+.1f} to {100 * high:+.1f}), n = {len(marks)}"


def origin(results: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    return (
        f"{results['limit']} questions of each of {len({k.split('/')[2] for k in results['cells']})} samples. Commit "
        f"{results['commit']}, {results['date']}; {results['hardware']}; {versions}. "
        f"Last command: `{results['command']}`"
    )


@exits_cleanly
def main() -> None:
    results = read_json(RESULTS_FOLDER / "beyond.json")
    parts = {
        "beyond-accuracy": partial(accuracy, results, list(CONTROLS)),
        "beyond-differences": partial(differences, results, [name for name in CONTROLS if name != UNPRUNED]),
        "beyond-ablation": partial(differences, results, list(ABLATION)),
        "beyond-mean": partial(_over_layers, results),
        "beyond-origin": partial(origin, results),
    }
    text = PAGE.read_text()
    for name, part in parts.items():
        text = replaced(text, name, part)
    write_text(PAGE, text)


def _over_layers(results: Mapping[str, Any]) -> str:
    """Budgets as a mean over layers: those of pre-LLM strategies too."""
    cells = {key: value for key, value in results["cells"].items() if key.rpartition("/")[2].startswith("mean-")}
    if not cells:
        return "Not run yet."
    found = answers_of({"cells": cells})
    rows = [[name, _share("".join(found[name].values()))] for name in (*CONTROLS, *BEFORE) if name in found]
    return "\n".join(markdown(["strategy", "right"], rows))


if __name__ == "__main__":
    main()
