"""Answers on disk -> right or wrong, by the task's own scorer: LLaVA's answers files, and lmms-eval's samples."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dart.stats import RIGHT
from dart.utils import UserError
from llava.eval import tasks
from llava.eval.engine.answers import Answers, all_lines, key_of_row
from llava.eval.engine.choices import LETTERS, choice_of
from llava.eval.engine.loop import VISUAL_TOKENS
from llava.eval.tasks.base import Sample
from llava.eval.vtc.groups import Answer, Key, Run

SAMPLES = "_samples_"  # in the name of lmms-eval's files, before the task's
# Part of lmms-eval's name of a task -> where its per-sample score is, the first field that is there.
LMMS_SCORES = {
    "chartqa": ("relaxed_overall",),
    "pope": ("pope_accuracy.score",),
    "ocrbench": ("ocrbench_accuracy.score",),
    "gqa": ("exact_match",),
    "mmstar": ("average.score",),
    "mme": ("mme_perception_score.score", "mme_cognition_score.score"),
    "textvqa": ("exact_match",),
    "vqav2": ("exact_match",),
    "vizwiz": ("exact_match",),
    "scienceqa": ("exact_match",),
    "two_images": ("exact_match",),
    "video_mini": ("exact_match",),
}
LMMS_CHOICES = {"mmbench": ("gpt_eval_score", "submission")}  # no score there: the letter is read by MMBench's own rule
EMPTY = ("", "None", "nan", "[]")


def _numbered(named: Iterable[tuple[Key, Answer]]) -> Run:
    """Keys of their own for a question that is asked twice."""
    seen: Counter[Key] = Counter()
    run = {}
    for key, answer in named:
        run[(*key, seen[key])] = answer
        seen[key] += 1
    return run


def judged(benchmark: str, data: Path, answers: Answers) -> Run:
    """The answers to one of this project's benchmarks. Raises UserError where single answers have no score here."""
    task = tasks.get(benchmark)
    part = task.split(data)
    if server := task.splits[part].server:
        raise UserError(f"{benchmark} {part} is scored by {server}: no one here knows which answers are right")
    return _numbered((_key(benchmark, sample), _answer(sample)) for sample in task.samples(data, answers, part))


def _key(benchmark: str, sample: Sample) -> Key:
    first = sample.answers[0]
    return benchmark, str(first["question_id"]), str(first["prompt"])


def _answer(sample: Sample) -> Answer:
    counts = [row.get("metadata", {}).get(VISUAL_TOKENS) for row in sample.answers]
    known = [count for count in counts if count is not None]
    complete = known and len(known) == len(counts)
    return Answer(
        sample.score >= RIGHT,
        " ".join(str(row["text"]) for row in sample.answers),
        statistics.mean(count["mean"] for count in known) if complete else None,
        statistics.mean(count["before"] for count in known) if complete else None,
        str(sample.answers[0].get("model_id", "")),
    )


def _field(row: Mapping[str, Any], path: str) -> Any:
    value: Any = row
    for name in path.split("."):
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def lmms_score(task: str, row: Mapping[str, Any]) -> float:
    """A sample's score by lmms-eval's own metric. An empty target is never right. Raises UserError for other tasks."""
    if str(row.get("target", "")).strip() in EMPTY:
        return 0.0
    for path in next((paths for part, paths in LMMS_CHOICES.items() if part in task), ()):
        if isinstance(asked := row.get(path), Mapping):
            options = {letter: str(asked[letter]) for letter in LETTERS if str(asked.get(letter)) not in EMPTY}
            return float(choice_of(str(asked["prediction"]), options) == asked["answer"])
    for path in next((paths for part, paths in LMMS_SCORES.items() if part in task), ()):
        value = _field(row, path)
        if isinstance(value, (int, float)):
            return float(value)
    raise UserError(
        f"lmms-eval's task {task}: no per-sample score is known among its fields {', '.join(row)}; "
        f"known tasks: {', '.join([*LMMS_CHOICES, *LMMS_SCORES])}"
    )


def _text(row: Mapping[str, Any]) -> str:
    given = row.get("filtered_resps", "")
    while isinstance(given, list):
        given = given[0] if given else ""
    return str(given)


def _lmms_run(path: Path, rows: list[dict[str, Any]]) -> Run:
    _, found, task = path.stem.partition(SAMPLES)
    if not found:
        raise UserError(
            f"{path}: the name of lmms-eval's samples ends in {SAMPLES}TASK.jsonl, which tells how to score"
        )
    return _numbered(
        ((task, str(row["doc_id"]), str(row.get("input", ""))), Answer(lmms_score(task, row) >= RIGHT, _text(row)))
        for row in rows
    )


def read_run(path: Path, benchmark: str | None, data: Path) -> Run:
    """The run of an answers file, of one of lmms-eval's samples files, or of all the latest ones of these in a folder.

    benchmark: of an answers file. Raises UserError for other files, and where single answers have no score.
    """
    if path.is_dir():
        latest = {file.stem.partition(SAMPLES)[2]: file for file in sorted(path.rglob(f"*{SAMPLES}*.jsonl"))}
        if not latest:
            raise UserError(
                f"{path} has no *{SAMPLES}*.jsonl; run lmms-eval with --log_samples, or name an answers file"
            )
        return {key: answer for file in latest.values() for key, answer in read_run(file, benchmark, data).items()}
    rows = all_lines(path)
    if not rows:
        raise UserError(f"{path} has no answers")
    if "doc_id" in rows[0]:
        return _lmms_run(path, rows)
    for row in rows:
        key_of_row(row, path)
    if benchmark is None:
        raise UserError(f"{path} is an answers file: name the one benchmark that it answers with --benchmarks")
    return judged(benchmark, data, rows)
