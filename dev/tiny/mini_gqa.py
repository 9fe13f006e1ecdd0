"""Write the embedded GQA in the official files' formats: `python -m dev.tiny.mini_gqa`."""

from __future__ import annotations

import json
import random
from pathlib import Path

from dev.tiny import questions as ask
from dev.tiny.mini import command
from dev.tiny.mini_common import encoded, scenes, write_bytes
from dev.tiny.questions import prompt_of
from llava.eval.engine.answers import write_lines

PICTURES = 12
FIRST_IMAGE, FIRST_QUESTION = 500001, 201000001
# Question -> GQA's (structural, semantic, detailed) types.
KINDS = (
    (ask.ask_color, ("query", "attr", "directWhich")),
    (ask.ask_kind_presence, ("verify", "obj", "exist")),
    (ask.ask_position, ("verify", "rel", "positionVerify")),
    (ask.ask_shape, ("query", "cat", "categoryThat")),
)


def make(out: Path, rng: random.Random) -> None:
    stream = scenes(rng, [asker for asker, _ in KINDS])
    rows, annotations = [], {}
    for n in range(PICTURES):
        scene, found = next(stream)
        image = f"n{FIRST_IMAGE + n}"
        write_bytes(out / "data" / "images" / f"{image}.jpg", encoded(scene))
        for question, (_, (structural, semantic, detailed)) in zip(found, KINDS, strict=True):
            key = str(FIRST_QUESTION + len(rows))
            text = prompt_of(question.text)
            rows.append({"question_id": key, "image": f"{image}.jpg", "text": text, "category": "default"})
            annotations[key] = {
                "question": question.text,
                "imageId": image,
                "answer": question.answer.lower(),
                "fullAnswer": f"{question.answer}.",
                "isBalanced": True,
                "groups": {"global": question.category, "local": key},
                "types": {"structural": structural, "semantic": semantic, "detailed": detailed},
                "entailed": [],
                "equivalent": [key],
            }
    write_lines(out / "llava_gqa_testdev_balanced.jsonl", rows)
    (out / "data" / "testdev_balanced_questions.json").write_text(json.dumps(annotations) + "\n")


if __name__ == "__main__":
    command({"gqa": make}, __doc__)
