"""Write the embedded LLaVA-Bench in the official files' formats: `python -m dev.tiny.mini_llavabench`."""

from __future__ import annotations

import random
from pathlib import Path

from dev.tiny.mini import command
from dev.tiny.mini_common import OPEN, encoded, scenes, write_bytes
from dev.tiny.questions import COUNT_WORDS
from llava.eval.engine.answers import answer_id, write_lines
from llava.eval.probe.drawing import Scene, Thing

PICTURES = 6
REFERENCE = "written from the scene's description"


def sentence_of(thing: Thing) -> str:
    side = "left" if thing.x < 0.5 else "right"
    number = f" with the number {thing.number}" if thing.number else ""
    return f"There is a {thing.color} {thing.kind}{number} on the {side} side."


def description_of(scene: Scene) -> str:
    return " ".join(sentence_of(thing) for thing in scene.things)


def make(out: Path, rng: random.Random) -> None:
    stream = scenes(rng, [OPEN["color"], OPEN["count"]])
    questions, contexts, answers = [], [], []
    for n in range(PICTURES):
        scene, (color, _) = next(stream)
        image, count = f"{n + 1:03d}.jpg", COUNT_WORDS[len(scene.shapes)]
        write_bytes(out / "images" / image, encoded(scene))
        contexts.append({"id": f"{n + 1:03d}", "image": image, "caption": description_of(scene)})
        for category, text, reference in (
            ("conv", color.text, f"It is {color.answer}."),
            ("detail", "Describe this image in detail.", description_of(scene)),
            ("complex", "How many shapes are there, and which ones?", f"There are {count}. {description_of(scene)}"),
        ):
            key = len(questions)
            questions.append({"question_id": key, "image": image, "text": text, "category": category})
            own = {"question_id": key, "prompt": text, "answer_id": answer_id(key, text, reference)}
            answers.append({**own, "model_id": REFERENCE, "text": reference})
    for name, rows in (("questions", questions), ("context", contexts), ("answers_gpt4", answers)):
        write_lines(out / f"{name}.jsonl", rows)


if __name__ == "__main__":
    command({"llava-bench-in-the-wild": make}, __doc__)
