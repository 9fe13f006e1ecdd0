"""Write the embedded Q-Bench dev files, English and Chinese: `python -m dev.tiny.mini_qbench`."""

from __future__ import annotations

import json
import random
from pathlib import Path

from dev.tiny import questions as ask
from dev.tiny.mini import command
from dev.tiny.mini_common import OPEN, Choice, encoded, scenes, with_options, write_bytes
from dev.tiny.mini_mmbench import WORDS_CN, chinese
from dev.tiny.questions import Question
from llava.eval.probe.drawing import Scene

PICTURES = 8
IN_CONTEXT_OTHER = 3  # Q-Bench's number for questions about a part of the image that are not about distortions
TYPES = {"existence": 0, "color": 1, "count": 2}  # yes-or-no, what, how
YES_NO = ("Yes", "No")


def ask_presence(scene: Scene, rng: random.Random) -> Question | None:
    return ask.ask_kind_presence(scene, rng)


ASKERS = {"existence": ask_presence, "color": OPEN["color"], "count": OPEN["count"]}


def in_chinese(choice: Choice) -> Choice:
    """Yes-or-no questions here, the others as in the Chinese MMBench."""
    if choice.category != "existence":
        return chinese(choice)
    thing = choice.text.removeprefix("Is there a ").removesuffix(" in the image?")
    return Choice(choice.category, f"图中有{WORDS_CN[thing]}吗？", ("是", "否"), choice.answer)


def entry_of(choice: Choice, image: str) -> dict:
    return {
        "img_path": image,
        "question": choice.text,
        "candidates": list(choice.options),
        "correct_ans": choice.options[choice.answer],
        "type": TYPES[choice.category],
        "concern": IN_CONTEXT_OTHER,
    }


def make(out: Path, rng: random.Random) -> None:
    stream = scenes(rng, list(ASKERS.values()))
    entries: dict[str, list[dict]] = {"llvisionqa_dev.json": [], "质衡-问答-验证集.json": []}
    for n in range(PICTURES):
        scene, found = next(stream)
        image = f"{n:05d}.jpg"
        write_bytes(out / "images_llvisionqa" / image, encoded(scene))
        for question in found:
            if question.category == "existence":
                choice = Choice("existence", question.text, YES_NO, YES_NO.index(question.answer))
            else:
                choice = with_options(question, rng)
            for rows, own in zip(entries.values(), (choice, in_chinese(choice)), strict=True):
                rows.append(entry_of(own, image))
    for name, rows in entries.items():
        (out / name).write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    command({"qbench": make}, __doc__)
