"""Write the embedded VizWiz val in the official files' formats: `python -m dev.tiny.mini_vizwiz`."""

from __future__ import annotations

import json
import random
from pathlib import Path

from dev.tiny import questions as ask
from dev.tiny.mini import command
from dev.tiny.mini_common import another, encoded, scenes, ten_answers, write_bytes
from dev.tiny.questions import Question, yes_no
from llava.eval.probe.drawing import SHAPES, Scene

PICTURES = 24
UNANSWERABLE = "unanswerable"


def ask_absent(scene: Scene, rng: random.Random) -> Question | None:
    """The colour of a shape that is not there."""
    absent = [shape for shape in SHAPES if shape not in {t.kind for t in scene.things}]
    return Question("absent", f"What color is the {rng.choice(absent)}?", UNANSWERABLE) if absent else None


ASKERS = (ask.ask_number, ask.ask_color, ask_absent, ask.ask_kind_presence)
TYPES = {yes_no(True): "yes/no", yes_no(False): "yes/no", UNANSWERABLE: UNANSWERABLE}


def make(out: Path, rng: random.Random) -> None:
    streams = [scenes(rng, [asker]) for asker in ASKERS]
    rows = []
    for n in range(PICTURES):
        scene, (question,) = next(streams[n % len(streams)])
        image = f"VizWiz_val_{n:08d}.jpg"
        write_bytes(out / "val" / image, encoded(scene))
        answer = question.answer.lower()
        other = "unsuitable" if answer == UNANSWERABLE else another(question, rng)
        kind = TYPES.get(question.answer, "number" if answer.isdigit() else "other")
        rows.append(
            {
                "image": image,
                "question": question.text,
                "answers": [{"answer": a, "answer_confidence": "yes"} for a in ten_answers(answer, other)],
                "answer_type": kind,
                "answerable": int(answer != UNANSWERABLE),
            }
        )
    (out / "val.json").write_text(json.dumps(rows) + "\n")


if __name__ == "__main__":
    command({"vizwiz": make}, __doc__)
