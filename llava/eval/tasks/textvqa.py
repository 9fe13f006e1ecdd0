"""TextVQA validation: open answers, official VQA accuracy."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dart.utils import UserError
from llava.eval.engine.answers import Answers, percent
from llava.eval.engine.normalize import vqa_accuracy
from llava.eval.tasks.base import Sample, Split, Task, register
from llava.files import read_json

QUESTIONS, IMAGES, ANNOTATIONS = "llava_textvqa_val_v051_ocr.jsonl", "train_images", "TextVQA_0.5.1_val.json"


def question_of(prompt: str) -> str:
    """The bare question, lower case, in a prompt of LLaVA's question files.

    Its first line; the second when OCR tokens come first; or what is between "Question:" and "Short answer:".
    """
    if prompt.startswith("OCR tokens: "):
        return prompt.partition("Question: ")[2].partition(" Short answer:")[0].strip().lower()
    lines = prompt.split("\n")
    at = 1 if prompt.startswith("Reference OCR token:") and len(lines) > 1 else 0
    return lines[at].strip().lower()


def references_of(annotations: dict[str, Any]) -> dict[tuple[str, str], list[str]]:
    """(image, question) -> people's answers."""
    return {(str(a["image_id"]), a["question"].strip().lower()): a["answers"] for a in annotations["data"]}


def score_samples(references: dict[tuple[str, str], list[str]], answers: Answers) -> list[Sample]:
    """Accuracy of each answer. Raises UserError for an answer without annotation."""
    samples = []
    for row in answers:
        key = (str(row["question_id"]), question_of(row["prompt"]))
        if key not in references:
            raise UserError(
                f"answer to image {key[0]}, question {key[1]!r} is not in the annotations; are they of the same split?"
            )
        samples.append(Sample(vqa_accuracy(row["text"], references[key]), [row], references[key]))
    return samples


def score_answers(annotations: dict[str, Any], answers: Answers) -> dict[str, Any]:
    """Accuracy in percent over the answers. Raises UserError for an answer without annotation."""
    references = references_of(annotations)
    total = sum(sample.score for sample in score_samples(references, answers))
    return {"score": percent(total, len(answers)), "samples": len(answers), "annotated": len(references)}


@register("textvqa")
class TextVqa(Task):
    folder = "textvqa"
    source = "https://textvqa.org/dataset (annotations 0.5.1 and images) and LLaVA's eval.zip (the question file)"
    splits = {"val": Split({QUESTIONS: "questions", IMAGES: "pictures", ANNOTATIONS: "annotations"}, QUESTIONS, IMAGES)}

    def score(self, data: Path, answers: Answers, split: str | None = None) -> dict[str, Any]:
        return score_answers(read_json(data / self.folder / ANNOTATIONS), answers)

    def samples(self, data: Path, answers: Answers, split: str | None = None) -> list[Sample]:
        return score_samples(references_of(read_json(data / self.folder / ANNOTATIONS)), answers)
