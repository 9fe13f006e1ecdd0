"""Probe sets of videos: a still ground, and a thing that moves or blinks: `python -m llava.eval.probe.video`.

Writes each set as a folder that `python -m dart.compare --data` takes. `--validate MODEL` also asks a model (Qwen2-VL,
Qwen2.5-VL) unpruned, blind, without the tokens that carry the answer, with nothing but them, and with a few methods.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from dart.cli import messages
from dart.cli.loading import Loaded, Prompt, load
from dart.cli.measure import answer
from dart.compare.data import FILE, MAX_NEW_TOKENS, equals_one
from dart.config import DartConfig
from dart.media import Video
from dart.records import write_lines
from dart.utils import UserError, exits_cleanly, provenance, write_json
from llava.eval.engine.suite_table import BLIND, UNPRUNED
from llava.eval.probe.drawing import SHAPES, Scene, Thing, render
from llava.eval.probe.scenes import ANSWERS, GROUND, SIDE
from llava.eval.probe.validate import ALONE, DATA, ORACLE, WITHOUT, oracle
from llava.eval.tasks.vqav2 import SHORT_ANSWER

SHOWN = {"moving": 4, "blinking": 1}  # set -> moments that show the thing, at another place each
MOMENTS, FRAMES = 4, 2  # of a clip; equal frames of a moment, which Qwen's tower takes together
FRAMES_PER_SECOND = 2.0
RADIUS = 0.085  # half the thing's side, of the image's
MARGIN = 0.02
GREY = (128, 128, 128)
LAYER = 2
METHODS = {"random": (320, 128, 32, 8), "evs": (320,), "dart": (32,), "divprune": (32,)}  # EVS: a whole frame at least


@dataclass(frozen=True)
class Clip:
    """One question about a video. scenes: of each moment."""

    scenes: Sequence[Scene]
    question: str
    answer: str

    def frames(self, thing: bool = True) -> list[Image.Image]:
        """RGB, SIDE x SIDE; thing: with what carries the answer."""
        scenes = self.scenes if thing else [replace(scene, things=[]) for scene in self.scenes]
        return [image for scene in scenes for image in [render(scene)] * FRAMES]


def clips(name: str, seed: int, number: int) -> list[Clip]:
    """`number` clips of a set, equal for equal names and seeds, all colours as often as each other."""
    rng, made = random.Random(f"probe-video-{name}-{seed}"), []
    for n in range(number):
        kind, color = rng.choice(SHAPES), ANSWERS["color"][n % len(ANSWERS["color"])]
        shown = rng.sample(range(MOMENTS), SHOWN[name])
        ground = Scene((SIDE, SIDE), [], rng.randrange(2**31), (GROUND,) * 3)
        scenes = []
        for moment in range(MOMENTS):
            x, y = (rng.uniform(RADIUS + MARGIN, 1 - RADIUS - MARGIN) for _ in range(2))
            thing = Thing(kind, color, x, y, RADIUS, RADIUS)
            scenes.append(replace(ground, things=[thing] if moment in shown else []))
        made.append(Clip(scenes, f"What color is the {kind} in the video?", color))
    return made


def write(folder: Path, made: Sequence[Clip]) -> None:
    """The clips as folders of frames, and their questions; whole or not at all. Does nothing where `folder` is."""
    if folder.is_dir():
        return
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    rows = []
    try:
        for n, clip in enumerate(made):
            home = temporary / "videos" / f"{n:03d}"
            home.mkdir(parents=True)
            for k, frame in enumerate(clip.frames()):
                frame.save(home / f"{k}.png")
            question = f"{clip.question}\n{SHORT_ANSWER}"
            rows.append({"id": f"{n:03d}", "video": home.name, "question": question, "answer": clip.answer})
        write_lines(temporary / FILE, rows)
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def prompt_of(loaded: Loaded, clip: Clip, frames: list[Image.Image]) -> Prompt:
    """The clip's question about these frames."""
    video = Video(frames, len(frames), FRAMES_PER_SECOND, list(range(len(frames))))
    return loaded.prompt(messages(f"{clip.question}\n{SHORT_ANSWER}", 0, 1), [], [video])


def evidence(loaded: Loaded, clip: Clip) -> torch.Tensor:
    """bool [N]: the visual tokens in whose pixels, as the processor gives them to the model, the thing shows."""
    shown, hidden = (prompt_of(loaded, clip, clip.frames(thing)).inputs for thing in (True, False))
    if "pixel_values_videos" not in shown:
        raise UserError(f"{loaded.model.config.model_type} takes no videos as Qwen2-VL does: choose another model")
    changed = (shown["pixel_values_videos"] != hidden["pixel_values_videos"]).any(-1)
    return changed.reshape(-1, loaded.model.config.vision_config.spatial_merge_size**2).any(-1).cpu()


def validate(loaded: Loaded, made: Sequence[Clip], name: str) -> dict[str, float]:
    """Row -> percent right."""
    common = DartConfig(layer=LAYER, exact=True, scope="joint")
    methods = {
        f"{method}-{keep}": replace(common, keep=keep, strategy=method)
        for method, budgets in METHODS.items()
        for keep in budgets
    }
    given = DartConfig(keep=1, strategy=ORACLE, layer=LAYER)
    right: dict[str, list[float]] = {}

    def ask(row: str, clip: Clip, prompt: Prompt, config: DartConfig | None) -> None:
        found = answer(loaded.model, prompt, config, MAX_NEW_TOKENS)
        text = loaded.tokenizer.decode(found.ids, skip_special_tokens=True)
        right.setdefault(row, []).append(equals_one([clip.answer], text))

    for number, clip in enumerate(tqdm(made, desc=name)):
        prompt, mask = prompt_of(loaded, clip, clip.frames()), evidence(loaded, clip)
        ask(UNPRUNED, clip, prompt, None)
        ask(BLIND, clip, prompt_of(loaded, clip, [Image.new("RGB", (SIDE, SIDE), GREY)] * (MOMENTS * FRAMES)), None)
        for row, kept in ((WITHOUT, ~mask), (ALONE, mask)):
            with oracle([kept]):
                ask(row.name, clip, prompt, given)
        for row, config in methods.items():
            ask(row, clip, prompt, replace(config, seed=number))
    return {row: round(100 * float(np.mean(scores)), 1) for row, scores in right.items()}


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA / "probe-video", help="folder in which the sets are made")
    parser.add_argument("--questions", type=int, default=48, help="of each set")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--validate", metavar="MODEL", help="checkpoint to ask")
    parser.add_argument("--out", type=Path, help="the validation's JSON file")
    args = parser.parse_args(argv)
    if args.questions < 1:
        raise UserError(f"--questions must be 1 or more, got {args.questions}")
    loaded = load(args.validate, None, None, None) if args.validate else None
    rows: dict[str, Any] = {}
    for name in SHOWN:
        made = clips(name, args.seed, args.questions)
        write(args.data / f"{name}-seed{args.seed}-{args.questions}", made)
        if loaded is not None:
            rows[name] = validate(loaded, made, name)
            if args.out:
                write_json(args.out, {**provenance(), "questions": args.questions, "rows": rows})
    print(json.dumps({"data": str(args.data), "rows": rows}))


if __name__ == "__main__":
    main()
