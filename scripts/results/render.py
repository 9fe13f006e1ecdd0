"""Write the README's tables of results from docs/results/*.json: `python -m scripts.results.render`."""

from __future__ import annotations

import json
import re
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS_FOLDER = ROOT / "docs" / "results"
README = ROOT / "README.md"
# Heading -> (benchmark, figure)
COLUMNS = {
    "TextVQA %": ("textvqa", "score"),
    "POPE F1": ("pope", "score"),
    "POPE %": ("pope", "accuracy"),
    "MME score": ("MME", "score"),
    "MME %": ("MME", "accuracy"),
    "easy-VQA %": ("easy_vqa", "score"),
}
SEED = re.compile(r"-seed\d+$")


def rows(cells: dict[str, dict[str, Any]]) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """setting -> benchmark -> figures (several for seeds), in the order of the cells."""
    out: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for key, figures in cells.items():
        benchmark, name = key.split("/")
        out.setdefault(SEED.sub("", name), {}).setdefault(benchmark, []).append(figures)
    return out


def _cell(figures: list[dict[str, Any]], name: str) -> str:
    if not figures:
        return "not run"
    values = [each[name] for each in figures]
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ({min(values):.1f} to {max(values):.1f}, {len(values)} seeds)"


def _markdown(heads: list[str], body: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(line)} |" for line in (heads, ["---"] * len(heads), *body)]


def accuracy_table(results: dict[str, Any]) -> str:
    """docs/results/llava-tiny.json as a Markdown table with its command, commit and hardware."""
    body = [
        [name, *(_cell(scores.get(benchmark, []), figure) for benchmark, figure in COLUMNS.values())]
        for name, scores in rows(results["cells"]).items()
    ]
    lines = _markdown(["setting", *COLUMNS], body)
    checkpoint = f"Checkpoint {results['checkpoint_sha256'][:12]}, commit {results['commit']}, {results['date']}"
    command = "Command: `python -m scripts.results.llava_tiny`."
    return "\n".join([*lines, "", f"{checkpoint}; {results['hardware']}. {command}"])


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
    return "\n".join([*_markdown(list(heads), body), "", f"{where} Command: `{results['command']}`."])


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {"llava-tiny": accuracy_table, "selection-cpu": selection_table}


def rendered(text: str, name: str, results: dict[str, Any]) -> str:
    """text with the part between the markers of `name` replaced. Raises ValueError without the markers."""
    begin, end = f"<!-- results:{name} -->", f"<!-- /results:{name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"no markers {begin} ... {end} to write the table between")
    head, rest = text.split(begin, 1)
    return f"{head}{begin}\n{TABLES[name](results)}\n{end}{rest.split(end, 1)[1]}"


def readme_with_results() -> str:
    """README.md with every table brought up to date."""
    text = README.read_text()
    for name in TABLES:
        text = rendered(text, name, json.loads((RESULTS_FOLDER / f"{name}.json").read_text()))
    return text


def render_all() -> None:
    README.write_text(readme_with_results())


if __name__ == "__main__":
    render_all()
