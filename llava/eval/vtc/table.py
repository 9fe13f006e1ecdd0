"""The protocol's results as Markdown: a table for each benchmark, ratio and filter."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llava.eval.engine.suite_table import NOT_RUN, TITLES, Row, markdown
from llava.eval.vtc.groups import FLOOR

HEADS = ["method", "visual tokens", "A: difficult", "B: simple", "win - loss", "p", "verdict"]
SMALLEST_P = 1e-4
POOLED = "all"


def _share(group: Mapping[str, Any]) -> str:
    if group["accuracy"] is None:
        return NOT_RUN
    low, high = group["interval_95"]
    return f"{group['accuracy']:.1f} [{low:.1f}, {high:.1f}]"


def _row(row: Mapping[str, Any]) -> Row:
    tokens = NOT_RUN if row["tokens"] is None else f"{row['tokens']:.1f}"
    p = f"< {SMALLEST_P:.4f}" if row["p"] < SMALLEST_P else f"{row['p']:.4f}"
    name = row["name"] if row["runs"] == 1 else f"{row['name']} ({row['runs']} runs)"
    change = f"{row['wins'] - row['losses']:+.1f} ({row['wins']:g} - {row['losses']:g})"
    return [name, tokens, _share(row["A"]), _share(row["B"]), change, p, row["verdict"]]


def _level(value: float | None) -> str:
    return NOT_RUN if value is None else f"{value:.1f}"


def _block(block: Mapping[str, Any]) -> Iterator[str]:
    names = (
        "all benchmarks together"
        if block["benchmark"] == POOLED
        else TITLES.get(block["benchmark"], block["benchmark"])
    )
    yield f"### {names}, D = {block['ratio']}, groups by {block['filter']}"
    yield ""
    budget = "not counted" if block["budget"] is None else f"{block['budget']:.1f} visual tokens"
    if block["share"] is not None:
        budget += f"; the filter left {100 * block['share']:.2f} % (1 / D^2 is {100 / block['ratio'] ** 2:.2f} %)"
    small = f" (n_A is under {FLOOR}: no verdict)" if block["n_A"] < FLOOR else ""
    yield (
        f"{block['samples']} questions, {block['original_right']} of them answered by the original: "
        f"n_A = {block['n_A']}, n_B = {block['n_B']}{small}. Budget: {budget}."
    )
    yield ""
    level = ["best constant answer", NOT_RUN, _level(block["majority"]["A"]), _level(block["majority"]["B"])]
    rows = [_row(row) for row in block["rows"]] + [[*level, NOT_RUN, NOT_RUN, "a level, no method"]]
    for name, why in block["not_run"].items():
        rows.append([name, *[NOT_RUN] * (len(HEADS) - 2), f"not run: {why}"])
    yield from markdown(HEADS, rows)
    if block["notes"]:
        yield ""
    yield from (f"- {note}" for note in block["notes"])


def to_markdown(results: Mapping[str, Any]) -> str:
    """Every block, after what was run where."""
    lines = [
        "# VTC-Bench's protocol, repaired",
        "",
        f"Filter: {results['filter_model']}. Tested: {results['tested_model']}. "
        f"Commit {results['commit']}, {results['date']}; {results['hardware']}.",
        "",
        f"`{results['command']}`",
        "",
        "Accuracy in percent, with 95 % Wilson intervals, of the questions that the original answers; see docs/vtc.md.",
        "",
    ]
    for note in results["notes"]:
        lines.append(f"- {note}")
    for block in results["blocks"]:
        lines += ["", *_block(block)]
    return "\n".join(lines).rstrip() + "\n"
