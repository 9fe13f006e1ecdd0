"""Write the embedded VQAv2 val in the official files' formats: `python -m dev.tiny.mini_vqav2`."""

from __future__ import annotations

import json
import random
from pathlib import Path

from dev.tiny import questions as ask
from dev.tiny.mini import command
from dev.tiny.mini_common import OPEN, another, encoded, scenes, ten_answers, write_bytes
from dev.tiny.questions import COUNT_WORDS, Question

PICTURES = 12
FIRST_IMAGE = 900001
ASKERS = (ask.ask_color, ask.ask_presence, OPEN["count"], ask.ask_number)
QUESTION_TYPES = {
    "color": "what color is the",
    "presence": "is there a",
    "count": "how many",
    "number": "what number is",
}


def official(question: Question) -> tuple[str, str]:
    """(answer as the data set writes it, its answer_type)."""
    if question.answer in COUNT_WORDS:
        return str(COUNT_WORDS.index(question.answer)), "number"
    kind = "yes/no" if question.answer in ("Yes", "No") else "number" if question.answer.isdigit() else "other"
    return question.answer.lower(), kind


def make(out: Path, rng: random.Random) -> None:
    stream = scenes(rng, list(ASKERS))
    questions, annotations = [], []
    for image in range(FIRST_IMAGE, FIRST_IMAGE + PICTURES):
        scene, found = next(stream)
        write_bytes(out / "val2014" / f"COCO_val2014_{image:012d}.jpg", encoded(scene))
        for k, question in enumerate(found):
            key, (answer, kind) = 1000 * image + k, official(question)
            given = ten_answers(answer, another(question, rng))
            questions.append({"image_id": image, "question": question.text, "question_id": key})
            annotations.append(
                {
                    "image_id": image,
                    "question_id": key,
                    "question_type": QUESTION_TYPES[question.category],
                    "answer_type": kind,
                    "multiple_choice_answer": answer,
                    "answers": [
                        {"answer": a, "answer_confidence": "yes", "answer_id": i} for i, a in enumerate(given, 1)
                    ],
                }
            )
    head = {"data_type": "mscoco", "data_subtype": "val2014"}
    (out / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(
        json.dumps({**head, "task_type": "Open-Ended", "questions": questions}) + "\n"
    )
    (out / "v2_mscoco_val2014_annotations.json").write_text(json.dumps({**head, "annotations": annotations}) + "\n")


if __name__ == "__main__":
    command({"vqav2": make}, __doc__)
