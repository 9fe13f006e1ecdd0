"""Probe sets on disk: LLaVA's question file, TextVQA's annotations, images, and the tokens that carry each answer."""

from __future__ import annotations

import os
import random
import shutil
from dataclasses import asdict
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import numpy as np

from dart.utils import UserError, write_json
from llava.eval.engine.answers import write_lines
from llava.eval.probe.drawing import GRID
from llava.eval.probe.scenes import ANSWERS, SIDE, Item, Knobs, make
from llava.eval.probe.sets import SETS, seed_of
from llava.eval.tasks.vqav2 import SHORT_ANSWER
from llava.files import read_json

QUESTIONS, IMAGES, ANNOTATIONS, EVIDENCE = "questions.jsonl", "images", "annotations.json", "evidence.json"
QUESTIONS_PER_SET = 96  # a multiple of every number of answers times strata
ANSWERS_PER_QUESTION = 10


def items_of(split: str, number: int) -> list[Item]:
    """`number` questions of a split, equal for equal names."""
    name, seed = seed_of(split)
    knobs, rng = SETS[name].knobs, random.Random(f"probe-{name}-{seed}")
    return [make(knobs, rng, answer, stratum) for answer, stratum in plan(knobs, rng, number)]


def plan(knobs: Knobs, rng: random.Random, number: int) -> list[tuple[str, str]]:
    """(answer, stratum) of `number` questions in random order, all combinations as often as each other."""
    pool = list(ANSWERS[knobs.ask])
    rng.shuffle(pool)
    chosen = list(islice(cycle((answer, stratum) for stratum in knobs.strata for answer in pool), number))
    rng.shuffle(chosen)
    return chosen


def header_of(split: str) -> dict[str, Any]:
    """What a split was made from."""
    name, seed = seed_of(split)
    knobs = asdict(SETS[name].knobs)
    return {"set": name, "seed": seed, "grid": [GRID, GRID], "knobs": {**knobs, "strata": list(knobs["strata"])}}


def ensure(folder: Path, split: str) -> None:
    """Make the split in `folder`/`split` unless it is there: whole or not at all, also with several processes.

    Raises UserError when what is there was made from other knobs.
    """
    target = folder / split
    if target.is_dir():
        header = read_json(target / EVIDENCE) if (target / EVIDENCE).is_file() else {}
        if any(header.get(name) != value for name, value in header_of(split).items()):
            raise UserError(f"{target} holds a probe set of another version; remove the folder, it is made again")
        return
    temporary = folder / f".{split}.{os.getpid()}.tmp"
    try:
        write_split(temporary, split, QUESTIONS_PER_SET)
        temporary.rename(target)
    except OSError:
        if not target.is_dir():  # else another process has made it meanwhile
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_split(folder: Path, split: str, number: int) -> None:
    """The files of a split of `number` questions."""
    (folder / IMAGES).mkdir(parents=True)
    rows, data, evidence = [], [], {}
    for n, item in enumerate(items_of(split, number)):
        name = f"{n:04d}"
        item.image().save(folder / IMAGES / f"{name}.png")
        text = f"{item.question}\n{SHORT_ANSWER}"
        rows.append({"question_id": name, "image": f"{name}.png", "text": text, "category": item.stratum})
        data.append(
            {
                "question_id": n,
                "question": item.question,
                "image_id": name,
                "image_width": SIDE,
                "image_height": SIDE,
                "answers": [item.answer.lower()] * ANSWERS_PER_QUESTION,
                "set_name": split,
            }
        )
        evidence[name] = np.flatnonzero(item.evidence()).tolist()
    write_lines(folder / QUESTIONS, rows)
    write_json(folder / ANNOTATIONS, {"dataset_type": "val", "dataset_name": f"probe-{split}", "data": data})
    write_json(folder / EVIDENCE, {**header_of(split), "tokens": evidence})
