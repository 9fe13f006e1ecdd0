"""Write the embedded ScienceQA in the official files' formats: `python -m dev.tiny.mini_sqa`."""

from __future__ import annotations

import json
import random
from pathlib import Path

from dev.tiny.mini import command
from dev.tiny.mini_common import OPEN, Choice, encoded, scenes, with_options, write_bytes
from llava.eval.engine.choices import LETTERS
from llava.eval.engine.choices import ask as lettered
from llava.eval.probe.drawing import COLORS, SHAPES

PICTURES, TEXTS = 24, 8
KINDS = ("color", "shape", "side", "number")


def ask_word(rng: random.Random) -> Choice:
    """A question about no image."""
    colors = rng.random() < 0.5
    right, wrong = (COLORS, SHAPES) if colors else (SHAPES, COLORS)
    options = [rng.choice(list(right)), *rng.sample(list(wrong), 2)]
    answer = options[0]
    rng.shuffle(options)
    return Choice(
        "word", f"Which of these is a {'color' if colors else 'shape'}?", tuple(options), options.index(answer)
    )


def make(out: Path, rng: random.Random) -> None:
    streams = {kind: scenes(rng, [OPEN[kind]]) for kind in KINDS}
    questions, problems = [], {}
    for n in range(PICTURES + TEXTS):
        key, with_picture = str(n + 1), n < PICTURES
        if with_picture:
            scene, (question,) = next(streams[KINDS[n % len(KINDS)]])
            choice = with_options(question, rng)
            write_bytes(out / "images" / "test" / key / "image.png", encoded(scene, "PNG"))
        else:
            choice = ask_word(rng)
        asked = lettered(choice.text, choice.options)
        talk = [
            {"from": "human", "value": f"<image>\n{asked}" if with_picture else asked},
            {"from": "gpt", "value": f"The answer is {LETTERS[choice.answer]}."},
        ]
        picture = {"image": f"{key}/image.png"} if with_picture else {}
        questions.append({"id": key, **picture, "conversations": talk})
        problems[key] = {
            "question": choice.text,
            "choices": list(choice.options),
            "answer": choice.answer,
            "hint": "",
            "image": "image.png" if with_picture else None,
            "task": "closed choice",
            "grade": "grade1",
            "subject": "natural science" if with_picture else "language science",
            "topic": "vocabulary" if not with_picture else "physics",
            "category": choice.category,
            "skill": choice.category,
            "lecture": "",
            "solution": "",
            "split": "test",
        }
    out.mkdir(parents=True, exist_ok=True)
    (out / "llava_test_CQM-A.json").write_text(json.dumps(questions, indent=1) + "\n")
    (out / "problems.json").write_text(json.dumps(problems) + "\n")
    (out / "pid_splits.json").write_text(json.dumps({"train": [], "val": [], "test": list(problems)}) + "\n")


if __name__ == "__main__":
    command({"scienceqa": make}, __doc__)
