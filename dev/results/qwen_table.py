"""docs/results/qwen-tiny.json as a Markdown table: a block for each model and ratio, a column for each task."""

from __future__ import annotations

import re
from itertools import groupby
from typing import Any

from llava.eval.engine.suite_table import NOT_RUN, SEED, UNPRUNED, markdown, mean_of, relative_average

# task -> (heading, the metric that is its score, factor to the usual scale)
SCORES = {
    "textvqa_mini": ("TextVQA", "exact_match", 100),
    "pope_mini": ("POPE (F1)", "pope_f1_score", 100),
    "mme_mini": ("MME", "mme_perception_score", 1),
    "two_images_mini": ("two pictures", "exact_match", 100),
    "video_mini": ("video", "exact_match", 100),
}
NAMES = {"qwen2_vl": "Qwen2-VL", "qwen2_5_vl": "Qwen2.5-VL"}


def qwen_table(results: dict[str, Any]) -> str:
    """The whole table and where it comes from."""
    heads = ["method", *(heading for heading, _, _ in SCORES.values()), "Avg."]
    body: list[list[str]] = []
    for family, name in NAMES.items():
        if f"{family}/{UNPRUNED}" not in results["runs"]:
            continue
        for ratio, group in groupby(results["settings"], key=lambda setting: setting["ratio"]):
            settings = [each["name"] for each in group]
            body.append([f"*{name}, {_tokens(results, family, ratio, settings)}*", *[""] * (len(heads) - 1)])
            body += [_row(results, family, row) for row in dict.fromkeys(SEED.sub("", each) for each in settings)]
    return "\n".join([*markdown(heads, body), "", _origin(results)])


def scores_of(results: dict[str, Any], family: str, row: str) -> dict[str, list[float]]:
    """task -> the scores of a row, one for each seed."""
    found: dict[str, list[float]] = {}
    for key, figures in results["runs"].items():
        if re.sub(SEED, "", key) == f"{family}/{row}":
            for task, (_, metric, scale) in SCORES.items():
                found.setdefault(task, []).append(scale * figures["tasks"][task][metric])
    return found


def _row(results: dict[str, Any], family: str, row: str) -> list[str]:
    scores = scores_of(results, family, row)
    average = relative_average(scores, scores_of(results, family, UNPRUNED), list(SCORES))
    return [row, *(mean_of(scores.get(task)) for task in SCORES), NOT_RUN if average is None else f"{average:.1f} %"]


def _tokens(results: dict[str, Any], family: str, ratio: str | None, settings: list[str]) -> str:
    """The heading of a block: what a ratio keeps, in the mean over all questions."""
    if ratio is None:
        return "all visual tokens"
    for name in settings:
        figures = results["runs"].get(f"{family}/{name}", {})
        if "tokens" in figures:
            before, after = figures["tokens"]
            return f"{ratio} dropped: {before:.0f} -> {after:.0f} tokens, {figures['mean_tokens']:.0f} over all layers"
    return f"{ratio} dropped"


def _origin(results: dict[str, Any]) -> str:
    digests = ", ".join(f"{NAMES[family]} {digest[:12]}" for family, digest in results["checkpoints_sha256"].items())
    asked = next(iter(results["runs"].values()))
    counts = ", ".join(f"{asked['questions'][task]} {heading}" for task, (heading, _, _) in SCORES.items())
    return (
        f"Questions: {counts}. lmms-eval {results['lmms_eval']}; checkpoints {digests}; commit {results['commit']}, "
        f"{results['date']}; {results['hardware']}. Command: `{results['command']}`."
    )
