"""Training data in LLaVA's format for the embedded model: `python -m dev.tiny.llava_data`, seeded.

pretrain.json: images with captions. finetune.json: images with several questions, pairs of images, and text alone.
"""

from __future__ import annotations

import argparse
import random
from pathlib import Path
from typing import Any

from dart.utils import write_json
from dev.tiny.mini_common import encoded, write_bytes
from dev.tiny.questions import Mix, prompt_of, sample_questions
from dev.tiny.several import sample_of_two
from dev.tiny.world import SIGN, Scene, Thing, sample_scene

OUT = "playground/data/eval/llava-tiny-train"
SAMPLES = 384
PAIR_EVERY, TEXT_EVERY = 8, 4  # of the rows for stage 2, one is about two images and one is text alone
TURNS = (2, 4)
TEXT_TURNS = (1, 5)
MOST = 97
INSTRUCTIONS = ("Describe the image concisely.", "What is in the image?", "Give a short caption.")

Row = dict[str, Any]


def name_of(thing: Thing) -> str:
    return f"a {thing.color} {thing.kind}" + (f" with the number {thing.number}" if thing.kind == SIGN else "")


def caption(scene: Scene) -> str:
    """What is in the scene, from left to right."""
    things = [name_of(thing) for thing in sorted(scene.things, key=lambda thing: thing.x)]
    return " and ".join([", ".join(things[:-1]), things[-1]] if len(things) > 1 else things)


def talk(turns: list[tuple[str, str]]) -> list[dict[str, str]]:
    return [{"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn, strict=True)]


def drawn_scene(rng: random.Random) -> Scene:
    while True:
        scene = sample_scene(rng)
        if scene.things and scene.texture in ("plain", "stripes"):
            return scene


def pretrain_row(name: str, scene: Scene, rng: random.Random) -> Row:
    order = ["<image>", rng.choice(INSTRUCTIONS)]
    rng.shuffle(order)
    return {"id": name, "image": f"{name}.jpg", "conversations": talk([("\n".join(order), caption(scene))])}


def finetune_row(name: str, scene: Scene, rng: random.Random) -> Row:
    questions = sample_questions(scene, rng, rng.randint(*TURNS), Mix())
    turns = [(prompt_of(each.text, each.request), each.answer) for each in questions]
    turns[0] = (f"<image>\n{turns[0][0]}", turns[0][1])
    return {"id": name, "image": f"{name}.jpg", "conversations": talk(turns)}


def pair_row(names: tuple[str, str], scenes: tuple[Scene, Scene], rng: random.Random) -> Row:
    question = sample_of_two(scenes, rng)
    text = f"<image>\n<image>\n{prompt_of(question.text, question.request)}"
    images = [f"{name}.jpg" for name in names]
    return {"id": "-".join(names), "image": images, "conversations": talk([(text, question.answer)])}


def text_row(name: str, rng: random.Random) -> Row:
    numbers = [rng.randint(0, MOST) for _ in range(rng.randint(*TEXT_TURNS))]
    return {"id": name, "conversations": talk([(f"What number comes after {n}?", str(n + 1)) for n in numbers])}


def write(out: Path, samples: int, seed: int) -> None:
    """The images, and the two data files once all images are there."""
    rng = random.Random(f"llava-data-{seed}")
    scenes = {f"{k:05d}": drawn_scene(rng) for k in range(samples)}
    for name, scene in scenes.items():
        write_bytes(out / "images" / f"{name}.jpg", encoded(scene))
    names, rows = list(scenes), []
    for k, (name, scene) in enumerate(scenes.items()):
        rows.append(finetune_row(name, scene, rng))
        if k % PAIR_EVERY == 0:
            pair = (name, names[k - 1])
            rows.append(pair_row(pair, (scenes[pair[0]], scenes[pair[1]]), rng))
        if k % TEXT_EVERY == 0:
            rows.append(text_row(f"text-{name}", rng))
    write_json(out / "pretrain.json", [pretrain_row(name, scene, rng) for name, scene in scenes.items()])
    write_json(out / "finetune.json", rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(OUT))
    parser.add_argument("--samples", type=int, default=SAMPLES, help="images")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    write(args.out, args.samples, args.seed)
    print(f"{args.samples} images with captions and conversations in {args.out}")


if __name__ == "__main__":
    main()
