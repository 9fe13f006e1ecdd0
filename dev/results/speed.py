"""The tables of docs/performance.md, training.md, serving.md, kernels.md and data.md, from docs/results/*.json."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import methods_report
from benchmarks.latency_report import HEADS, cells, groups
from llava.eval.engine.suite_table import markdown
from llava.eval.probe import validate

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
SCOPES = {"joint": "one pool", "span": "spans of 1024"}
MEGA = 1e6
NONE_YET = "No run has been recorded yet."


def replaced(text: str, name: str, table: Callable[[], str]) -> str:
    """text with `table()` between the markers of `name`. Raises ValueError without the markers, before it is called."""
    begin, end = f"<!-- results:{name} -->", f"<!-- /results:{name} -->"
    if begin not in text or end not in text:
        raise ValueError(f"no markers {begin} ... {end} to write the table between")
    head, rest = text.split(begin, 1)
    return f"{head}{begin}\n{table()}\n{end}{rest.split(end, 1)[1]}"


def _source(result: dict[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    where = f"Commit {result['commit']}, {result['date']}; {result['hardware']}; {versions}."
    return f"{where}\nCommand: `{result['command']}`"


def latency_tables(result: dict[str, Any]) -> str:
    """One run: a table for each dtype, attention and batch size."""
    lines = []
    for title, rows in groups(result["rows"]):
        lines += [f"**{result['model']}**, {title}, {rows[0]['tokens']} tokens, decoding: {result['engine']}", ""]
        lines += [*markdown(HEADS, [cells(row) for row in rows]), ""]
    rates = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in result["rates"].items())
    lines += [f"Measured beside it: {rates}. {result['note']}".rstrip(), "", _source(result)]
    return "\n".join(lines)


def methods_table(result: dict[str, Any]) -> str:
    """Every method's prefill, a table for each shape, beside another model's accuracy."""
    lines, accuracy = [], result["accuracy"]
    for name, part in result["shapes"].items():
        lines += [f"**{methods_report.title_of(name, part)}**", ""]
        lines += [*markdown(methods_report.HEADS, methods_report.table(part, accuracy)), ""]
        lines += [f"- {reason}" for reason in methods_report.refused(part)]
        repeats = sorted({row["repeats"] for row in part["rows"] if "repeats" in row})
        rounds = " or ".join(map(str, repeats))
        lines += ["", f"Medians of {rounds} rounds. {part['note']}".rstrip(), "", _source(part), ""]
    lines.append(
        f"Accuracy: {accuracy['model']} ({accuracy['layers']} layers) with {accuracy['keep']} tokens as a mean, in "
        f"percent of its unpruned score, mean of {', '.join(accuracy['data'])} ({accuracy['source']})."
    )
    return "\n".join(lines)


def training_table(result: dict[str, Any]) -> str:
    """A step of fine-tuning, each way beside the plain one."""
    heads = ["way", "seconds a step", "times faster", "peak memory, MB", "of plain"]
    plain = result["rows"][0]["peak_mb"]["median"]
    body = []
    for row in result["rows"]:
        cells = [f"{row[key]['median']:g} ±{row[key]['iqr']:g}" for key in ("step_s", "times_faster", "peak_mb")]
        body.append([row["way"], *cells, f"{row['peak_mb']['median'] / plain:.2f}"])
    checkpointing = "with" if result["checkpointing"] else "without"
    what = (
        f"**{result['model']}**, {result['dtype']}, {result['attn']}, batch {result['batch']}, {result['tokens']} "
        f"tokens of which {result['visual_tokens']} are visual, {checkpointing} gradient checkpointing; `dart` keeps "
        f"{result['keep']}. Medians of {result['repeats']} rounds of {result['steps']} steps. {result['note']}"
    )
    return "\n".join([what.rstrip(), "", *markdown(heads, body), "", _source(result)])


def serving_table(result: dict[str, Any]) -> str:
    """Many clients at a server, every setting beside the first one at the same number of clients. What the client that
    asked does not know is "-"."""
    heads = ["clients", "dropped", "requests", "lost", "wrong", "prompt tokens", "requests a second", "times"]
    heads += ["first word, s (95 %)", "whole answer, s (95 %)", "KV cache at most"]
    base = {row["clients"]: row["requests_per_s"] for row in reversed(result["rows"])}
    body = []
    for row in result["rows"]:
        cells = [row.get(key, "-") for key in ("clients", "setting", "requests", "lost", "wrong", "prompt_tokens")]
        cells += [row["requests_per_s"], f"{row['requests_per_s'] / base[row['clients']]:.2f}"]
        cells += [f"{row[f'{name}_median_s']:.2f} ({row[f'{name}_p95_s']:.2f})" for name in ("first", "total")]
        cells.append(f"{row['cache_peak']:.1%}" if "cache_peak" in row else "-")
        body.append([str(cell) for cell in cells])
    return "\n".join([*markdown(heads, body), "", f"{result['model']}; {result['server']}. {_source(result)}"])


def scaling_table(result: dict[str, Any]) -> str:
    """Selection over the number of visual tokens."""
    heads = ["visual tokens", *(f"{name}, ms" for name in SCOPES.values()), "peak MB", "operands MB"]
    by_size: dict[int, dict[str, Any]] = {}
    for row in result["rows"]:
        by_size.setdefault(row["visual"], {})[row["scope"]] = row
    body = []
    for visual, rows in by_size.items():
        peak = max(row["peak_bytes"] for row in rows.values())
        body.append([str(visual), *(f"{rows[scope]['ms']:.1f}" for scope in SCOPES)])
        body[-1] += [f"{each / MEGA:.0f}" for each in (peak, rows["joint"]["operand_bytes"])]
    lines = {name: result["lines"][scope] for scope, name in SCOPES.items()}
    fits = "; ".join(
        f"{name} {line['us_a_token']:.2f} microseconds a token (R^2 {line['r2']:.4f})" for name, line in lines.items()
    )
    return "\n".join([*markdown(heads, body), "", f"Straight lines: {fits}.", "", _source(result)])


def _figure(path: Path) -> str:
    """The chart that was written beside a results file, if there is one."""
    return f"\n\n![{path.stem}](results/{path.name})" if path.is_file() else ""


def builds_table(result: dict[str, Any]) -> str:
    """What the compiler made of each kernel."""
    heads = [name.replace("_", " ") for name in result["rows"][0]]
    body = [[str(value) for value in row.values()] for row in result["rows"]]
    return "\n".join([*markdown(heads, body), "", f"For {result['target']}. {_source(result)}"])


def kernels_table(result: dict[str, Any]) -> str:
    """Microseconds of the kernels, of torch's operations, and the floor."""
    heads = [name.replace("_us", ", microseconds").replace("_", " ") for name in result["rows"][0]]
    body = [[str(value) for value in row.values()] for row in result["rows"]]
    rate = f"The floor's rate, of a large copy: {result['copy_gb_s']:g} GB/s."
    return "\n".join([*markdown(heads, body), "", rate, "", _source(result)])


def evidence_table(result: dict[str, Any]) -> str:
    """Targets that a strategy hits, of made-up features."""
    heads = list(result["rows"][0])
    body = [[str(value) for value in row.values()] for row in result["rows"]]
    kept = f"{result['keep']} of 576 tokens kept, means over {result['seeds']} seeds."
    return "\n".join([*markdown(heads, body), "", f"{kept} {_source(result)}"])


def probe_table(result: dict[str, Any]) -> str:
    """Validation of the probe sets."""
    samples = sorted({figures["samples"] for figures in result["cells"].values() if "samples" in figures})
    asked = f"Percent right, of {' or '.join(map(str, samples))} questions a cell."
    return "\n".join([validate.to_markdown(result), "", f"{asked} {_source(result)}"])


def video_table(result: dict[str, Any]) -> str:
    """Validation of the probe sets of videos."""
    columns = list(next(iter(result["rows"].values())))
    body = [[name, *(f"{score:.1f}" for score in scores.values())] for name, scores in result["rows"].items()]
    asked = f"Percent right, of {result['questions']} questions a cell."
    return "\n".join([*markdown(["set", *columns], body), "", f"{asked} {_source(result)}"])


# page -> {marker: table of one results file}
PAGES: dict[str, dict[str, Callable[[dict[str, Any]], str]]] = {
    "performance.md": {"latency": latency_tables, "methods": methods_table, "selection-scaling": scaling_table},
    "training.md": {"training-speed": training_table},
    "serving.md": {"serving": serving_table, "client": serving_table},
    "data.md": {"probe": probe_table, "video": video_table, "evidence": evidence_table},
    "kernels.md": {"kernel-builds": builds_table, "kernels": kernels_table},
}


def page_with_results(page: str, text: str, folder: Path) -> str:
    """The page with the part between each pair of markers made anew. Raises ValueError without the markers."""
    for part, table in PAGES[page].items():
        text = replaced(text, part, partial(_tables, part, table, folder))
    return text


def _tables(part: str, table: Callable[[dict[str, Any]], str], folder: Path) -> str:
    """The tables of all runs that were recorded for a part, each with its chart."""
    files = sorted(folder.glob(f"{part}-*.json"))
    tables = [table(json.loads(path.read_text())) + _figure(path.with_suffix(".png")) for path in files]
    return "\n\n".join(tables or [NONE_YET])
