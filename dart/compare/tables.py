"""The results as Markdown (a block for each budget) and as CSV (a line for each cell)."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dart.compare.plan import BLIND, UNPRUNED

Results = Mapping[str, Any]
FORMULA = ("=", "+", "-", "@")  # how a cell begins that a spreadsheet would compute
MARKUP = re.compile(r"[\\`*|<>\[\]]")  # what begins markup or ends a cell in Markdown
LEVEL = 0.05  # of a p-value that is marked
BETTER, WORSE, UNEQUAL, ASKS = "▲", "▼", "≠", "?"
COLUMNS = (
    "data", "method", "budget", "score", "low", "high", "samples", "official", "wins", "losses", "p", "asked",
    "reached", "equal", "mean_tokens", "select_ms", "prefill_ms", "timed", "kv_mb", "per_layer", "reason",
)  # fmt: skip


def to_csv(results: Results) -> str:
    """Scores as shares of 1, tokens as means over samples, per_layer joined by spaces; nothing where not known.

    A text that a spreadsheet would take for a formula has an apostrophe before it.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for cell in results["cells"]:
        values = {**cell, "per_layer": " ".join(map(str, cell.get("per_layer", [])))}
        writer.writerow(["" if values.get(name) is None else _cell(values[name]) for name in COLUMNS])
    return text.getvalue()


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    text = " ".join(value.split())
    return f"'{text}" if text.startswith(FORMULA) else text


def plain(text: str) -> str:
    """A name in Markdown, as it is: no character of it is read as markup, and it is one line."""
    return MARKUP.sub(r"\\\g<0>", " ".join(text.split()))


def code(text: str) -> str:
    """A text as code in Markdown, in one line: between more backticks than there are side by side in it."""
    text = " ".join(text.split())
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{text}{fence}" if len(fence) == 1 else f"{fence} {text} {fence}"


def budget_name(budget: float | None) -> str:
    """A budget in words."""
    if budget is None:
        return "all tokens"
    return f"{budget} tokens" if isinstance(budget, int) else f"{100 * budget:g} % of the tokens"


def mark(cell: Mapping[str, Any]) -> str:
    """How a cell compares with the baseline's at the same budget."""
    if not cell.get("equal", True):
        return UNEQUAL
    if cell.get("p", 1.0) >= LEVEL:
        return ""
    return BETTER if cell["wins"] > cell["losses"] else WORSE


def number(value: float | None, digits: int = 1) -> str:
    """With `digits` decimals; a dash for None."""
    return "-" if value is None else f"{value:.{digits}f}"


def score_text(cell: Mapping[str, Any]) -> str:
    """A cell's score in percent, its interval and its mark; or that it was not run."""
    if "reason" in cell:
        return "not run"
    interval = f"({100 * cell['low']:.0f}-{100 * cell['high']:.0f})"
    return " ".join(part for part in (number(100 * cell["score"]), interval, mark(cell)) if part)


def _row(results: Results, average: Mapping[str, Any]) -> list[str]:
    method, budget = average["method"], average["budget"]
    cells = [c for c in results["cells"] if (c["method"], c["budget"]) == (method, budget)]
    name = plain(method) + (f" {ASKS}" if results["methods"][method]["question_aware"] else "")
    relative = "-" if average["relative"] is None else f"{average['relative']:.1f} %"
    relative += "" if average.get("equal", True) else f" {UNEQUAL}"
    figures = [number(average.get("mean_tokens")), number(average.get("select_ms")), number(average.get("prefill_ms"))]
    return [name, figures[0], *map(score_text, cells), relative, *figures[1:]]


def to_markdown(results: Results) -> str:
    """The whole table with its notes, as in `results.md`."""
    names = list(map(plain, names_of(results)))
    heads = ["method", "tokens", *names, "relative", "select ms", "prefill ms"]
    lines = [f"| {' | '.join(heads)} |", f"|---|{'---:|' * (len(heads) - 1)}"]
    for budget in [None, *results["budgets"]]:
        if budget is not None:
            lines.append(f"| *{budget_name(budget)}* |{' |' * (len(heads) - 1)}")
        for average in results["averages"]:
            if average["budget"] == budget:
                lines.append(f"| {' | '.join(_row(results, average))} |")
    return "\n".join([*lines, "", *notes(results, plain), *reasons(results, plain)]) + "\n"


def notes(results: Results, plain: Callable[[str], str] = str) -> list[str]:
    """How to read the table, one line each. plain: writes a name that somebody chose, in the form of the page."""
    kind, base = results["budget_kind"], results["baseline"]
    asked = "; ".join(
        f"{plain(data['name'])}: {data['samples']} of {data['of']} questions"
        + (f" ({plain(data['note'])})" if data["note"] else "")
        for data in results["data"]
    )
    return [
        f"- Budgets are {kind}, exact counts, layer {results['layer']}; tokens: the true mean over the decoder's "
        "layers and the samples.",
        f"- Scores in percent with 95 % intervals. {BETTER} {WORSE}: McNemar's exact test against {plain(base)} at the "
        f"same budget, p < {LEVEL} (not corrected for the number of rows); {UNEQUAL}: its true budget is another, not "
        f"tested. {ASKS}: looks at the question.",
        f"- relative: mean over {', '.join(map(plain, names_of(results)))} of the score as a percentage of "
        f"{UNPRUNED}'s. {BLIND}: every picture replaced by grey. With several seeds a score is their mean, and an "
        "answer counts as right against another method where half of the seeds are.",
        f"- Times: medians; prefill with vision tower, {results['dtype']}, attention {results['attention']}, "
        f"{plain(results['hardware'])}.",
        f"- {asked}. Model {plain(results['model_name'])}, commit {results['commit']}, {results['date']}: "
        f"{code(results['command'])}",
    ]


def names_of(results: Results) -> list[str]:
    """The names of the data sets, in order."""
    return [data["name"] for data in results["data"]]


def reasons(results: Results, plain: Callable[[str], str] = str) -> list[str]:
    """Why what was not run was not, equal reasons together. plain: as for `notes`."""
    found: dict[str, list[str]] = {}
    for cell in results["cells"]:
        if "reason" in cell:
            found.setdefault(f"{cell['method']}: {cell['reason']}", []).append(_place(cell))
    return [f"- not run: {plain(reason)} [{plain('; '.join(places))}]" for reason, places in found.items()]


def _place(cell: Mapping[str, Any]) -> str:
    return f"{cell['data']}, {budget_name(cell['budget'])}"


def axis_points(results: Results, data: str | None, x: str) -> Sequence[Mapping[str, Any]]:
    """Rows with a score and the figure `x`: of one data set, or (None) the averages over all."""
    rows = results["averages"] if data is None else [c for c in results["cells"] if c["data"] == data]
    return [row for row in rows if row.get("score") is not None and row.get(x) is not None]
