"""Write the README's table of results from docs/results/llava-tiny.json: `python -m scripts.results.render`."""

from __future__ import annotations

import json
import re
import statistics
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "docs" / "results" / "llava-tiny.json"
README = ROOT / "README.md"
BEGIN, END = "<!-- results:llava-tiny -->", "<!-- /results:llava-tiny -->"
COLUMNS = {"textvqa": "TextVQA %", "pope": "POPE", "MME": "MME", "easy_vqa": "easy-VQA %"}
SEED = re.compile(r"-seed\d+$")


def rows(cells: dict[str, dict[str, Any]]) -> dict[str, dict[str, list[float]]]:
    """setting -> benchmark -> headline scores (several for seeds), in the order of the cells."""
    out: dict[str, dict[str, list[float]]] = {}
    for key, figures in cells.items():
        benchmark, name = key.split("/")
        out.setdefault(SEED.sub("", name), {}).setdefault(benchmark, []).append(figures["score"])
    return out


def _cell(scores: list[float] | None) -> str:
    if not scores:
        return "not run"
    mean = f"{statistics.mean(scores):.1f}"
    return mean if len(scores) == 1 else f"{mean} ({min(scores):.1f} to {max(scores):.1f}, {len(scores)} seeds)"


def table(results: dict[str, Any]) -> str:
    """The Markdown table with its command, commit and hardware."""
    lines = ["| setting | " + " | ".join(COLUMNS.values()) + " |", "|---" * (len(COLUMNS) + 1) + "|"]
    for name, scores in rows(results["cells"]).items():
        lines.append(f"| {name} | " + " | ".join(_cell(scores.get(b)) for b in COLUMNS) + " |")
    checkpoint = f"Checkpoint {results['checkpoint_sha256'][:12]}, commit {results['commit']}, {results['date']}"
    command = "Command: `python -m scripts.results.llava_tiny`."
    return "\n".join([*lines, "", f"{checkpoint}; {results['hardware']}. {command}"])


def rendered(text: str, results: dict[str, Any]) -> str:
    """text with the part between the markers replaced. Raises ValueError without the markers."""
    if BEGIN not in text or END not in text:
        raise ValueError(f"no markers {BEGIN} ... {END} to write the table between")
    head, rest = text.split(BEGIN, 1)
    return f"{head}{BEGIN}\n{table(results)}\n{END}{rest.split(END, 1)[1]}"


def render_all() -> None:
    """Bring README.md up to date with the results."""
    README.write_text(rendered(README.read_text(), json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    render_all()
