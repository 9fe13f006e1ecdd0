"""Write the tables of README.md and docs/*.md from docs/results/*.json: `python -m dev.results.render`."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from dev.results import speed
from dev.results.qwen_table import qwen_table
from llava.eval.engine.suite_table import BLIND, TITLES, UNPRUNED, markdown, to_markdown

ROOT = Path(__file__).resolve().parents[2]
RESULTS_FOLDER = ROOT / "docs" / "results"
README = ROOT / "README.md"
FRONT = (UNPRUNED, BLIND, "dart", "random", "uniform", "fastv", "mob", "spread")  # layer 2, and the two ends


def accuracy_table(results: dict[str, Any]) -> str:
    """docs/results/llava-tiny.json: the suite's table, and the accuracies behind headline scores that are none."""
    lines = [
        f"{name}: {TITLES[benchmark].split()[0]} {figures['accuracy']:.1f} %"
        for name in (UNPRUNED, BLIND)
        for benchmark in ("pope", "mme")
        if "accuracy" in (figures := results["cells"].get(f"{benchmark}/{name}", {}))
    ]
    note = f"Shares of right answers, {', '.join(lines)} (chance: 50 %). " if lines else ""
    return f"{to_markdown(results)}{note}Command: `python -m dev.results.llava_tiny`."


def selection_table(results: dict[str, Any]) -> str:
    """docs/results/selection-cpu.json as a Markdown table."""
    heads = {
        "shape": "shape",
        "dtype": "dtype",
        "norm": "norm_ms",
        "original": "original_ms",
        "naive loop": "naive_ms",
        "reading the operands": "floor_ms",
    }
    body = [[str(row[key]) for key in heads.values()] for row in results["rows"]]
    where = f"Milliseconds, median; commit {results['commit']}, {results['date']}; {results['hardware']}."
    return "\n".join([*markdown(list(heads), body), "", f"{where} Command: `{results['command']}`."])


def front_table(results: dict[str, Any]) -> str:
    """docs/results/compare-llava-tiny.json at its smallest budget: what drops tokens at one layer, and the ends."""
    cells = {(cell["data"], cell["method"], cell["budget"]): cell for cell in results["cells"]}
    names = [data["name"] for data in results["data"]]
    budget = min(results["budgets"])

    def score(data: str, method: str) -> str:
        cell = cells[data, method, None if method in (UNPRUNED, BLIND) else budget]
        return f"{100 * cell['score']:.1f} ({100 * cell['low']:.0f} to {100 * cell['high']:.0f})"

    body = [[method, *(score(name, method) for name in names)] for method in FRONT]
    asked = ", ".join(f"{data['samples']} questions of {TITLES[data['name']].split()[0]}" for data in results["data"])
    heads = ["", *(f"{TITLES[name].split()[0]}, % right" for name in names)]
    where = f"Commit {results['commit']}, {results['date']}; {results['hardware']}; {asked}; 95 % intervals."
    return "\n".join([*markdown(heads, body), "", f"{where} Command:", f"`{results['command']}`."])


# page -> {marker and results file: its table}
TABLES: dict[Path, dict[str, Callable[[dict[str, Any]], str]]] = {
    README: {"compare-llava-tiny": front_table},
    speed.DOCS / "evidence.md": {"llava-tiny": accuracy_table, "qwen-tiny": qwen_table},
    speed.DOCS / "performance.md": {"selection-cpu": selection_table},
}


def with_results(page: Path) -> str:
    """The page with its tables brought up to date. Raises ValueError where it has no markers for one of them."""
    text = page.read_text()
    for name, table in TABLES.get(page, {}).items():
        results = json.loads((RESULTS_FOLDER / f"{name}.json").read_text())
        text = speed.replaced(text, name, partial(table, results))
    if page.parent == speed.DOCS and page.name in speed.PAGES:
        text = speed.page_with_results(page.name, text, RESULTS_FOLDER)
    return text


def pages() -> list[Path]:
    """All pages that have tables."""
    return sorted({*TABLES, *(speed.DOCS / name for name in speed.PAGES)})


def render_all() -> None:
    for page in pages():
        page.write_text(with_results(page))


if __name__ == "__main__":
    render_all()
