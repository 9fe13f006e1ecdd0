"""Write the embedded benchmarks (TextVQA, POPE, MME) in the official files' formats: `python -m dev.tiny.mini`."""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable, Mapping
from pathlib import Path

from dev.tiny import questions as ask
from dev.tiny.questions import YES_NO_REQUEST, Question, prompt_of
from dev.tiny.world import sample_scene
from llava.eval.engine.answers import write_lines
from llava.eval.probe.drawing import Scene, render

Maker = Callable[[Path, random.Random], None]

SEED = 2025  # not a training seed: training draws from the seeds "<stage>-<seed>-<step>"
TEXTVQA_SIZE, POPE_PER_CATEGORY, MME_PER_SUBTASK = 240, 80, 50
ANSWERS_PER_QUESTION = 10
POPE_CATEGORIES = ("random", "popular", "adversarial")
IMAGE_QUALITY = 88


def scenes_with(rng: random.Random, makers: list[Callable[[Scene, random.Random], Question | None]]):
    """Scenes on which every maker finds its question, and those questions, without end."""
    while True:
        scene = sample_scene(rng)
        found = [make(scene, rng) for make in makers]
        if all(found):
            yield scene, found


def save_picture(scene: Scene, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    render(scene).save(path, quality=IMAGE_QUALITY)


def command(makers: Mapping[str, Maker], description: str | None) -> None:
    """`--out` and `--seed` for sets that are each written to a folder below --out: folder -> what writes it."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="playground/data/mini")
    parser.add_argument("--seed", type=int, default=SEED)
    args = parser.parse_args()
    for folder, make in makers.items():
        make(Path(args.out) / folder, random.Random(f"mini-{folder}-{args.seed}"))
    print(f"{', '.join(makers)} in {args.out}")


def make_textvqa(out: Path, rng: random.Random) -> None:
    """Numbers read from signs, colours, names of shapes and counts: open answers only."""
    makers = [ask.ask_number, ask.ask_color, ask.ask_shape]
    stream = scenes_with(rng, makers)
    rows, data = [], []
    for n in range(TEXTVQA_SIZE // len(makers)):
        scene, found = next(stream)
        image = f"scene_{n:04d}"
        save_picture(scene, out / "train_images" / f"{image}.jpg")
        for k, question in enumerate(found):
            rows.append(
                {"question_id": image, "image": f"{image}.jpg", "text": prompt_of(question.text), "category": "default"}
            )
            data.append(
                {
                    "question_id": len(makers) * n + k,
                    "question": question.text,
                    "image_id": image,
                    "image_width": scene.size[0],
                    "image_height": scene.size[1],
                    "answers": [question.answer] * ANSWERS_PER_QUESTION,
                    "set_name": "val",
                }
            )
    write_lines(out / "llava_textvqa_val_v051_ocr.jsonl", rows)
    annotation = {"dataset_type": "val", "dataset_name": "textvqa-mini", "dataset_version": "0.5.1", "data": data}
    (out / "TextVQA_0.5.1_val.json").write_text(json.dumps(annotation) + "\n")


def make_pope(out: Path, rng: random.Random) -> None:
    """Per category as many Yes as No; see `questions.absent_thing` for what is asked that is not there."""
    rows = []
    for category in POPE_CATEGORIES:
        makers = [
            lambda s, r, c=category: ask.ask_presence(s, r, c, True),
            lambda s, r, c=category: ask.ask_presence(s, r, c, False),
        ]
        stream, labels = scenes_with(rng, makers), []
        for n in range(POPE_PER_CATEGORY // len(makers)):
            scene, found = next(stream)
            image = f"scene_{category}_{n:04d}.jpg"
            save_picture(scene, out / "val2014" / image)
            for question in found:
                rows.append(
                    {"question_id": len(rows), "image": image, "text": prompt_of(question.text), "category": category}
                )
                labels.append(
                    {
                        "question_id": len(labels) + 1,
                        "image": image,
                        "text": question.text,
                        "label": question.answer.lower(),
                    }
                )
        write_lines(out / "coco" / f"coco_pope_{category}.json", labels)
    write_lines(out / "llava_pope_test.jsonl", rows)


MME_SUBTASKS = {
    "existence": ask.ask_kind_presence,
    "count": ask.ask_count,
    "position": ask.ask_position,
    "color": lambda s, r, answer: ask.ask_presence(s, r, "popular", answer),
    "OCR": ask.ask_ocr,
}


def make_mme(out: Path, rng: random.Random) -> None:
    """Two questions per image, one Yes and one No, in MME's folders."""
    rows = []
    for subtask, make in MME_SUBTASKS.items():
        stream = scenes_with(
            rng, [lambda s, r, m=make: m(s, r, answer=True), lambda s, r, m=make: m(s, r, answer=False)]
        )
        folder = out / "MME_Benchmark_release_version" / subtask
        for n in range(MME_PER_SUBTASK // 2):
            scene, found = next(stream)
            save_picture(scene, folder / f"{n:04d}.jpg")
            texts = [f"{q.text} {YES_NO_REQUEST}" for q in found]
            (folder / f"{n:04d}.txt").write_text(
                "".join(f"{t}\t{q.answer}\n" for t, q in zip(texts, found, strict=True))
            )
            name = f"{subtask}/{n:04d}.jpg"
            rows += [{"question_id": name, "image": name, "text": prompt_of(t), "category": subtask} for t in texts]
    write_lines(out / "llava_mme.jsonl", rows)


if __name__ == "__main__":
    command({"textvqa": make_textvqa, "pope": make_pope, "MME": make_mme}, __doc__)
