"""Accuracy of the embedded model: `python -m scripts.results.llava_tiny` from the repository's root.

Every cell is a benchmark, a strategy and a budget. Finished cells are written at once to docs/results/llava-tiny.json
and are not run again while the checkpoint is the same; then the tables are rendered (scripts/results/render.py).
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dart.bench._report import provenance, write_json
from llava.cli_errors import exits_cleanly
from llava.eval import tasks
from llava.eval.answers import read_lines
from llava.eval.loop import Loaded, add_loop_arguments, load, run
from scripts.results.render import render_all
from scripts.tiny.easy_vqa import convert

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "playground" / "models" / "llava-tiny"
MINI = ROOT / "playground" / "data" / "mini"
WORK = ROOT / "outputs" / "results"
RESULTS = ROOT / "docs" / "results" / "llava-tiny.json"
COMMAND = "python -m scripts.results.llava_tiny"
BENCHMARKS = ("textvqa", "pope", "MME", "easy_vqa")
BUDGETS = (128, 64, 192)
SEEDS = (0, 1, 2)
EASY_VQA_QUESTIONS = 500
TASK_NAMES = {"MME": "mme"}


def settings() -> Iterator[tuple[str, list[str]]]:
    """Name and DART flags of each column, the most telling ones first."""
    yield "unpruned", []
    yield "blind", ["--blind"]
    for budget in BUDGETS:
        base = ["--sparse", "--max_num_trunction", str(budget)]
        yield f"dart-original-{budget}", base
        yield f"dart-norm-{budget}", [*base, "--pivot_order", "norm"]
        yield f"uniform-{budget}", [*base, "--strategy", "uniform"]
        for seed in SEEDS:
            yield f"random-{budget}-seed{seed}", [*base, "--strategy", "random", "--seed", str(seed)]


def data_of(benchmark: str) -> Path:
    """Folder that holds the benchmark's folder; easy-VQA is converted from its package on first use."""
    if benchmark != "easy_vqa":
        return MINI
    if not (WORK / "data" / "easy_vqa").is_dir():
        convert("test", WORK / "data" / "easy_vqa", EASY_VQA_QUESTIONS)
    return WORK / "data"


def evaluate(
    benchmark: str, name: str, flags: list[str], digest: str, batch_size: int, loaded: Loaded
) -> dict[str, Any]:
    """Figures of one cell."""
    task, data = tasks.get(TASK_NAMES.get(benchmark, benchmark)), data_of(benchmark)
    files = task.examples(data)
    answers = WORK / digest / benchmark / f"{name}.jsonl"
    parser = argparse.ArgumentParser()
    add_loop_arguments(parser)
    common = {
        "--model-path": CHECKPOINT,
        "--question-file": files.questions,
        "--image-folder": files.images,
        "--answers-file": answers,
        "--batch-size": batch_size,
        "--max_new_tokens": task.max_new_tokens,
    }
    args = parser.parse_args([*(str(word) for pair in common.items() for word in pair), *flags])
    answers.parent.mkdir(parents=True, exist_ok=True)
    run(args, loaded)
    return task.score(data, list(read_lines(answers)))


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--benchmarks", nargs="+", choices=BENCHMARKS, default=BENCHMARKS)
    parser.add_argument("--only", nargs="+", help="names of the settings to run, such as unpruned dart-original-128")
    parser.add_argument("--batch-size", type=int, default=8)
    args = parser.parse_args(argv)
    digest = hashlib.sha256((CHECKPOINT / "model.safetensors").read_bytes()).hexdigest()
    known = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {}
    cells = known["cells"] if known.get("checkpoint_sha256") == digest else {}
    loader = argparse.ArgumentParser()
    add_loop_arguments(loader)
    needed = {"--model-path": CHECKPOINT, "--question-file": "", "--image-folder": "", "--answers-file": ""}
    loaded = load(loader.parse_args([str(word) for pair in needed.items() for word in pair]))
    for name, flags in settings():
        for benchmark in args.benchmarks:
            key = f"{benchmark}/{name}"
            if key in cells or (args.only and name not in args.only):
                continue
            cells[key] = evaluate(benchmark, name, flags, digest[:12], args.batch_size, loaded)
            write_json(RESULTS, provenance() | {"command": COMMAND, "checkpoint_sha256": digest, "cells": cells})
            render_all()


if __name__ == "__main__":
    main()
