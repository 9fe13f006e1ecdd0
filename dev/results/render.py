"""Write the tables of README.md and docs/*.md from docs/results/*.json: `python -m dev.results.render`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dev.results import speed
from dev.results.qwen_table import qwen_table
from llava.eval.engine.suite_table import BLIND, TITLES, UNPRUNED, markdown, to_markdown

ROOT = Path(__file__).resolve().parents[2]
RESULTS_FOLDER = ROOT / "docs" / "results"
README = ROOT / "README.md"


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


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "llava-tiny": accuracy_table,
    "qwen-tiny": qwen_table,
    "selection-cpu": selection_table,
}


def rendered(text: str, name: str, results: dict[str, Any]) -> str:
    """text with the part between the markers of `name` replaced. Raises ValueError without the markers."""
    return speed.replaced(text, name, lambda: TABLES[name](results))


def readme_with_results() -> str:
    """README.md with the table of every results file that there is brought up to date."""
    text = README.read_text()
    for name in TABLES:
        path = RESULTS_FOLDER / f"{name}.json"
        if path.is_file():
            text = rendered(text, name, json.loads(path.read_text()))
    return text


def render_all() -> None:
    README.write_text(readme_with_results())
    for name in speed.PAGES:
        page = speed.DOCS / name
        page.write_text(speed.page_with_results(name, page.read_text(), RESULTS_FOLDER))


if __name__ == "__main__":
    render_all()
