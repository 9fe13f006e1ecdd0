"""The suite's results in the layout of the paper's Table 1: a block for each budget, a column for each benchmark."""

from __future__ import annotations

import html
import re
import statistics
from itertools import groupby
from typing import Any

TITLES = {
    "textvqa": "TextVQA",
    "pope": "POPE (F1)",
    "mme": "MME",
    "gqa": "GQA",
    "vqav2": "VQAv2",
    "vizwiz": "VizWiz",
    "sqa": "SQA",
    "seed": "SEED",
    "mmbench": "MMB",
    "mmbench_cn": "MMB-CN",
    "ocrbench": "OCRBench",
    "qbench": "Q-Bench",
    "qbench_zh": "Q-Bench-CN",
    "mmvet": "MM-Vet",
    "llavabench": "LLaVA-Bench",
    "easy_vqa": "easy-VQA",
    "probe": "Probe",
}
SEED = re.compile(r"-seed\d+$")
NOT_RUN = "-"
UNPRUNED, BLIND = "unpruned", "blind"
Row = list[str]


def _scores(results: dict[str, Any]) -> dict[str, dict[str, list[float]]]:
    """setting without its seed -> benchmark -> scores."""
    found: dict[str, dict[str, list[float]]] = {}
    for setting in results["settings"]:
        row = found.setdefault(SEED.sub("", setting["name"]), {})
        for key, figures in results["cells"].items():
            benchmark, name = key.split("/")
            if name == setting["name"] and figures.get("score") is not None:
                row.setdefault(benchmark, []).append(figures["score"])
    return found


def _benchmarks(results: dict[str, Any]) -> list[str]:
    return list(dict.fromkeys(key.split("/")[0] for key in results["cells"]))


def relative_average(row: dict[str, list[float]], whole: dict[str, list[float]], benchmarks: list[str]) -> float | None:
    """The paper's `Avg.`: the mean over benchmarks of the score as a percentage of the unpruned model's.

    None while a benchmark's score is missing, or where the unpruned model scored nothing.
    """
    if not benchmarks or any(b not in row or not whole.get(b) or whole[b][0] == 0 for b in benchmarks):
        return None
    return statistics.mean(100 * statistics.mean(row[b]) / whole[b][0] for b in benchmarks)


def mean_of(scores: list[float] | None) -> str:
    """The mean over seeds, with the standard deviation where there are several."""
    if not scores:
        return NOT_RUN
    mean = f"{statistics.mean(scores):.1f}"
    return mean if len(scores) == 1 else f"{mean} ±{statistics.pstdev(scores):.1f}"


def _block(results: dict[str, Any], keep: int | None) -> str:
    """The heading of a budget: what was asked for and how many tokens that keeps, from layer K on and in the mean."""
    if keep is None:
        return "all visual tokens"
    names = {s["name"] for s in results["settings"] if s["keep"] == keep}
    kept = {
        (tuple(f["tokens"]), f["mean_tokens"])
        for key, f in results["cells"].items()
        if key.split("/")[1] in names and "tokens" in f
    }
    if len(kept) != 1:
        return f"keep {keep}"
    (before, after), mean = kept.pop()
    return f"keep {keep}: {before} -> {after} tokens, {mean:.0f} as a mean over layers"


def table(results: dict[str, Any]) -> tuple[Row, list[tuple[str, list[Row]]], list[Row]]:
    """(headings, blocks of (title, rows), rows (benchmark, reason) for what could not be run)."""
    benchmarks, scores = _benchmarks(results), _scores(results)
    scored = [b for b in benchmarks if b in scores.get(UNPRUNED, {})]
    blocks: list[tuple[str, list[Row]]] = []
    for keep, group in groupby(results["settings"], key=lambda s: s["keep"]):
        rows: list[Row] = []
        for name in dict.fromkeys(SEED.sub("", s["name"]) for s in group):
            average = relative_average(scores[name], scores.get(UNPRUNED, {}), scored)
            cells = [mean_of(scores[name].get(b)) for b in benchmarks]
            rows.append([name, *cells, NOT_RUN if average is None else f"{average:.1f} %"])
        blocks.append((_block(results, keep), rows))
    failed = {key.split("/")[0]: why for key, f in results["cells"].items() if (why := _why_not(f))}
    heads = ["method", *(TITLES.get(b, b) for b in benchmarks), "Avg."]
    return heads, blocks, [[TITLES.get(b, b), reason] for b, reason in failed.items()]


def _why_not(figures: dict[str, Any]) -> str | None:
    """Why a cell has no score: an error, or a score that is made on a server."""
    if "server" in figures:
        return f"scored by {figures['server']} from the submission file"
    return figures.get("error")


def _origin(results: dict[str, Any]) -> str:
    """What was run, where: one line."""
    checkpoint = f"Checkpoint {results['checkpoint_sha256'][:12]}, commit {results['commit']}, {results['date']}"
    return f"{checkpoint}; {results['hardware']}."


def markdown(heads: Row, body: list[Row]) -> list[str]:
    """The lines of a Markdown table; a bar in a name does not end its cell."""
    escaped = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in (heads, *body)]
    escaped.insert(1, ["---"] * len(heads))
    return [f"| {' | '.join(row)} |" for row in escaped]


def to_markdown(results: dict[str, Any]) -> str:
    heads, blocks, failed = table(results)
    body: list[Row] = []
    for title, rows in blocks:
        body += [[f"*{title}*", *[""] * (len(heads) - 1)], *rows]
    notes = [f"- {name} has no score: {reason}" for name, reason in failed]
    return "\n".join([*markdown(heads, body), "", _origin(results), *notes]) + "\n"


def to_html(results: dict[str, Any]) -> str:
    heads, blocks, failed = table(results)

    def row(tag: str, cells: Row) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    body = [row("th", heads)]
    for title, rows in blocks:
        body.append(f'<tr><td class="block" colspan="{len(heads)}">{html.escape(title)}</td></tr>')
        body += [row("td", cells) for cells in rows]
    notes = [f"<p>{html.escape(name)} has no score: {html.escape(reason)}</p>" for name, reason in failed]
    style = "table{border-collapse:collapse;font:14px sans-serif}td,th{padding:4px 10px;border-bottom:1px solid #ddd}"
    style += "td+td,th+th{text-align:right}.block{text-align:center;background:#f2f2f2}"
    return "\n".join(
        [
            f'<!doctype html><meta charset="utf-8"><title>DART suite</title><style>{style}</style>',
            "<table>",
            *body,
            "</table>",
            f"<p>{html.escape(_origin(results))}</p>",
            *notes,
            "",
        ]
    )
