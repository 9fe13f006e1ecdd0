"""Write the embedded MM-Vet in the official files' formats: `python -m dev.tiny.mini_mmvet`."""

from __future__ import annotations

import json
import random
from pathlib import Path

from dev.tiny import questions as ask
from dev.tiny.mini import command
from dev.tiny.mini_common import OPEN, encoded, scenes, write_bytes
from dev.tiny.questions import Question
from llava.eval.engine.answers import write_lines
from llava.eval.probe.drawing import Scene

QUESTIONS = 16


def ask_all_numbers(scene: Scene, _: random.Random) -> Question | None:
    """Two signs: an answer is right when both numbers are in it."""
    if len(scene.signs) != 2:
        return None
    return Question("numbers", "What numbers are on the signs?", "<AND>".join(sign.number for sign in scene.signs))


# What is asked, and the capabilities of MM-Vet that it needs.
ASKERS = (
    (ask_all_numbers, ["ocr"]),
    (OPEN["color"], ["rec"]),
    (OPEN["count"], ["rec", "math"]),
    (OPEN["side"], ["rec", "spat"]),
)
COUNT_DIGITS = {word: f"{word}<OR>{number}" for number, word in enumerate(ask.COUNT_WORDS)}


def make(out: Path, rng: random.Random) -> None:
    streams = [scenes(rng, [asker]) for asker, _ in ASKERS]
    rows, truth = [], {}
    for n in range(QUESTIONS):
        scene, (question,) = next(streams[n % len(streams)])
        image = f"v1_{n}.jpg"
        write_bytes(out / "images" / image, encoded(scene))
        rows.append({"question_id": n, "image": image, "text": question.text, "category": "default"})
        truth[f"v1_{n}"] = {
            "imagename": image,
            "question": question.text,
            "answer": COUNT_DIGITS.get(question.answer, question.answer),
            "imagesource": "synthetic",
            "capability": ASKERS[n % len(ASKERS)][1],
        }
    write_lines(out / "llava-mm-vet.jsonl", rows)
    (out / "mm-vet.json").write_text(json.dumps(truth, indent=1) + "\n")


if __name__ == "__main__":
    command({"mm-vet": make}, __doc__)
