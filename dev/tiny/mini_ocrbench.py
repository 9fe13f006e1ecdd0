"""Write the embedded OCRBench in the official file's format: `python -m dev.tiny.mini_ocrbench`."""

from __future__ import annotations

import json
import random
from pathlib import Path

from dev.tiny import questions as ask
from dev.tiny.mini import command
from dev.tiny.mini_common import encoded, scenes, write_bytes
from dev.tiny.questions import Question
from llava.eval.probe.drawing import Scene

PICTURES = 12
# Kind of question -> OCRBench's type and data set.
TYPES = {"digits": ("Digit String Recognition", "ORAND"), "number": ("Scene Text-centric VQA", "textVQA")}


def ask_digits(scene: Scene, _: random.Random) -> Question | None:
    """The number in an image with one sign."""
    return Question("digits", "What number is on the sign?", scene.signs[0].number) if len(scene.signs) == 1 else None


def ask_colored(scene: Scene, rng: random.Random) -> Question | None:
    """The number on the sign of a colour."""
    question = ask.ask_number(scene, rng)
    return question if question and question.text != "What number is on the sign?" else None


def make(out: Path, rng: random.Random) -> None:
    stream = scenes(rng, [ask_digits, ask_colored])
    rows: list[dict] = []
    for n in range(PICTURES):
        scene, found = next(stream)
        for question in found:
            kind, dataset = TYPES[question.category]
            image = f"{dataset}/{n:04d}.jpg"
            write_bytes(out / "OCRBench_Images" / image, encoded(scene))
            rows.append(
                {
                    "dataset_name": dataset,
                    "id": f"{len(rows)}",
                    "question": question.text,
                    "answers": [question.answer],
                    "type": kind,
                    "image_path": image,
                }
            )
    (out / "OCRBench").mkdir(parents=True, exist_ok=True)
    (out / "OCRBench" / "OCRBench.json").write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    command({"OCRBench": make}, __doc__)
