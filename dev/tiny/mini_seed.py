"""Write the embedded SEED-Bench in the official files' formats: `python -m dev.tiny.mini_seed`."""

from __future__ import annotations

import json
import random
from pathlib import Path

from dev.tiny.mini import command
from dev.tiny.mini_common import OPEN, OPTIONS, encoded, scenes, with_options, write_bytes
from llava.eval.engine.answers import write_lines
from llava.eval.engine.choices import LETTER_REQUEST, LETTERS
from llava.eval.engine.choices import ask as lettered

PICTURES = 12
FIRST_QUESTION = 700001
# Kind of question -> SEED-Bench's type.
TYPES = {"color": ("Instance Attributes", 3), "count": ("Instances Counting", 5), "number": ("Text Understanding", 9)}


def make(out: Path, rng: random.Random) -> None:
    stream = scenes(rng, [OPEN[kind] for kind in TYPES])
    rows, questions = [], []
    for n in range(PICTURES):
        scene, found = next(stream)
        image = f"SEED-Bench-image/{n:07d}"
        write_bytes(out / image, encoded(scene))
        for question in found:
            choice, key = with_options(question, rng), FIRST_QUESTION + len(rows)
            name, number = TYPES[choice.category]
            text = f"{lettered(choice.text, choice.options)}\n{LETTER_REQUEST}"
            rows.append({"question_id": key, "image": image, "text": text, "category": name})
            questions.append(
                {f"choice_{LETTERS[k].lower()}": choice.options[k] for k in range(OPTIONS)}
                | {
                    "answer": LETTERS[choice.answer],
                    "data_id": f"{n:07d}",
                    "data_type": "image",
                    "question": choice.text,
                    "question_id": str(key),
                    "question_type_id": number,
                }
            )
    write_lines(out / "llava-seed-bench.jsonl", rows)
    types = {name: number for name, number in TYPES.values()}
    (out / "SEED-Bench.json").write_text(json.dumps({"questions": questions, "question_type": types}) + "\n")


if __name__ == "__main__":
    command({"seed_bench": make}, __doc__)
