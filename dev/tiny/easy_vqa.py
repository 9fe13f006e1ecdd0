"""easy-VQA (the PyPI package `easy-vqa`, MIT): images and questions that this project did not make."""

from __future__ import annotations

import argparse
import importlib.util
import json
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dev.tiny.questions import Question, prompt_of


def package_data(split: str) -> Path:
    """Folder of a split inside the installed package; the package itself is not imported (it needs nothing of ours)."""
    found = importlib.util.find_spec("easy_vqa")
    if found is None or not found.submodule_search_locations:
        raise SystemExit("error: the package easy-vqa is not installed; install it with: pip install easy-vqa")
    return Path(found.submodule_search_locations[0]) / "data" / split


def capital(answer: str) -> str:
    """The tiny model says Yes and No; the scorer compares without case."""
    return answer.capitalize() if answer in ("yes", "no") else answer


class EasyVqa:
    def __init__(self, split: str):
        self.folder = package_data(split)
        self.by_image: dict[int, list[Question]] = {}
        for text, answer, image in json.loads((self.folder / "questions.json").read_text()):
            self.by_image.setdefault(image, []).append(Question("easy", text, capital(answer)))

    def picture(self, image: int) -> Image.Image:
        return Image.open(self.folder / "images" / f"{image}.png").convert("RGB")

    def sample(self, rng: random.Random, size: int, number: int) -> tuple[torch.Tensor, list[list[Question]]]:
        """float32 [size, 3, 336, 336] and `number` questions for each."""
        from dev.tiny.batches import normalise, to_square

        images = rng.choices(list(self.by_image), k=size)
        pixels = normalise(np.stack([to_square(self.picture(i)) for i in images]))
        return pixels, [rng.choices(self.by_image[i], k=number) for i in images]


def convert(split: str, out: Path, limit: int | None) -> int:
    """Write the split in LLaVA's benchmark layout: questions, answers and images; returns the number of questions."""
    data = EasyVqa(split)
    (out / "images").mkdir(parents=True, exist_ok=True)
    questions, answers = [], {}
    for image, asked in sorted(data.by_image.items()):
        name = f"{image}.png"
        for k, question in enumerate(asked):
            if limit is not None and len(questions) >= limit:
                break
            key = f"{image}_{k}"
            questions.append(
                {"question_id": key, "image": name, "text": prompt_of(question.text), "category": "easy_vqa"}
            )
            answers[key] = question.answer.lower()
            target = out / "images" / name
            if not target.exists():
                data.picture(image).save(target)
    (out / f"llava_easy_vqa_{split}.jsonl").write_text("".join(json.dumps(q) + "\n" for q in questions))
    (out / "answers.json").write_text(json.dumps(answers, indent=0) + "\n")
    return len(questions)


def main() -> None:
    parser = argparse.ArgumentParser(description="Convert easy-VQA to LLaVA's benchmark format.")
    parser.add_argument("--split", default="test", choices=("train", "test"))
    parser.add_argument("--out", default="playground/data/eval/easy_vqa")
    parser.add_argument("--limit", type=int, help="at most this many questions")
    args = parser.parse_args()
    print(f"{convert(args.split, Path(args.out), args.limit)} questions in {args.out}")


if __name__ == "__main__":
    main()
