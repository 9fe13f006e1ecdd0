"""How well models answer that learned with dropped tokens: `python -m dev.results.epic train`, then `... ask`.

`train` fine-tunes the embedded model by the scripts that users run (scripts/v1_5/finetune.sh, finetune_epic.sh), once
for every way of training and every seed, on images and questions made from that seed. `ask` answers the question sets
with every trained model and the untrained one at several budgets; a cell (model, seed, questions, strategy, budget) is
one string of right (1) and wrong (0) answers, written at once. Both go on where they were stopped. Runs of other
`--steps` or another `--rate` have a folder and a file of results of their own. The tables of docs/epic.md are made by
`python -m dev.results.epic_table`.
"""

from __future__ import annotations

import argparse
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from tqdm import tqdm

import dart
from dart.utils import UserError, exits_cleanly, provenance, write_json
from dev.results.beyond import EVERYTHING, LAYER, SEEDS, TASKS, Llava, Remembered, answers_right
from dev.results.render import RESULTS_FOLDER, ROOT
from dev.tiny.llava_data import write as write_data
from llava.files import fingerprint, read_json

RUNS = ROOT / "outputs" / "epic"
BASE = ROOT / "playground" / "models" / "llava-tiny"
UNTRAINED = "untrained"
STEPS, BATCH, RATE = 120, 8, 3e-4
SET_NAMES = ("textvqa", "pope")
STRATEGIES = ("dart", "fastv", "random")
KEEP = (64, 36, 12)


@dataclass(frozen=True)
class Way:
    """A way of training: a script of scripts/v1_5 and what is typed after it."""

    script: str
    words: tuple[str, ...] = ()


WAYS = {
    "plain": Way("finetune.sh"),
    "dart-36": Way("finetune.sh", ("--strategy", "dart", "--keep", "36")),
    "dart-12-64": Way("finetune.sh", ("--strategy", "dart", "--keep", "12-64")),
    "tcd": Way("finetune_epic.sh", ("tcd", "--gradient_accumulation_steps", "1")),
    "lcd": Way("finetune_epic.sh", ("lcd", "--gradient_accumulation_steps", "1")),
}


@dataclass(frozen=True)
class Runs:
    """Trainings of as many steps at one rate: every row of the data is seen once."""

    steps: int
    rate: float

    @property
    def standard(self) -> bool:
        return (self.steps, self.rate) == (STEPS, RATE)

    @property
    def home(self) -> Path:
        return RUNS if self.standard else RUNS / f"{self.steps}-{self.rate:g}"

    @property
    def results(self) -> Path:
        name = "" if self.standard else f"-{self.steps}-steps"
        return RESULTS_FOLDER / f"epic-llava-tiny{name}.json"

    def folder(self, way: str, seed: int) -> Path:
        return self.home / f"{way}-{seed}"

    def is_trained(self, folder: Path) -> bool:
        state = folder / "trainer_state.json"
        done = state.is_file() and read_json(state)["global_step"] == self.steps
        return done and (folder / "config.json").is_file()

    def models(self) -> list[tuple[str, int, Path]]:
        """(way, seed, folder) of what can be asked."""
        trained = [(way, seed, self.folder(way, seed)) for way in WAYS for seed in range(len(SEEDS))]
        return [(UNTRAINED, 0, BASE), *(each for each in trained if self.is_trained(each[2]))]


def data_of(runs: Runs, seed: int) -> Path:
    """The folder of a seed's training data, made when it is not there. The questions are about one image each."""
    home = runs.home / f"data-{seed}"
    if not (home / "one.json").is_file():
        write_data(home, runs.steps * BATCH, seed)
        rows = read_json(home / "finetune.json")
        write_json(home / "one.json", [row for row in rows if isinstance(row.get("image"), str)])
    return home


def train(runs: Runs, way: str, seed: int) -> None:
    """Run the script, to the end or on from where it was stopped. Raises UserError when it fails."""
    data, folder, script = data_of(runs, seed), runs.folder(way, seed), WAYS[way]
    environment = {
        "NPROC": "1",
        "STEPS": str(runs.steps),
        "BATCH": str(BATCH),
        "DATA_PATH": str(data / "one.json"),
        "IMAGE_FOLDER": str(data / "images"),
        "OUT": str(folder),
    }
    words = [
        "bash",
        f"scripts/v1_5/{script.script}",
        *script.words,
        "--learning_rate",
        str(runs.rate),
        "--seed",
        str(seed),
    ]
    words += ["--gradient_checkpointing", "False", "--save_steps", str(runs.steps // 3), "--save_total_limit", "1"]
    if subprocess.run(words, cwd=ROOT, env=os.environ | environment).returncode:
        raise UserError(f"{' '.join(words)} failed")


def ask(runs: Runs, out: Path, limit: int, strategies: list[str], keeps: list[int]) -> None:
    """Fill the cells that are missing."""
    facts = {"limit": limit, "steps": runs.steps, "batch": BATCH, "rate": runs.rate}
    facts["base_sha256"] = fingerprint(str(BASE))
    known = read_json(out) if out.is_file() else {}
    if known and any(known[name] != value for name, value in facts.items()):
        raise UserError(f"{out} holds results of other settings: choose another --out")
    results: dict[str, Any] = {"cells": {}} | known | facts
    for way, seed, folder in runs.models():
        budgets = [("dart", EVERYTHING), *((name, keep) for name in strategies for keep in keeps)]
        todo = {}
        for name in SET_NAMES:
            for sample in SEEDS:
                for strategy, keep in budgets:
                    label = "all" if keep == EVERYTHING else f"{strategy}-{keep}"
                    key = f"{way}/{seed}/{name}/{sample}/{label}"
                    if key not in results["cells"]:
                        config = dart.DartConfig(keep=keep, layer=LAYER, exact=True, strategy=strategy, seed=seed)
                        todo.setdefault((name, sample), {})[key] = config
        if todo:
            _ask(folder, todo, limit, out, results)


def _ask(folder: Path, todo: dict[tuple[str, int], dict], limit: int, out: Path, results: dict[str, Any]) -> None:
    family = Llava(folder)
    memory = Remembered(family.tower)
    with torch.inference_mode():
        for (name, sample), cells in tqdm(todo.items(), desc=folder.name):
            asked = TASKS[name](sample)
            Random(0).shuffle(asked)
            asked = asked[:limit]
            batches = [(asked, family.batch([each.example for each in asked]))]
            memory.known.clear()
            for key, config in cells.items():
                results["cells"][key] = answers_right(family, batches, memory, config)
            write_json(out, results | provenance())


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("train", "ask"))
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", nargs="+", type=int, default=list(range(len(SEEDS))))
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=list(STRATEGIES))
    parser.add_argument("--keep", nargs="+", type=int, default=list(KEEP))
    parser.add_argument("--limit", type=int, default=60, help="questions of each sample")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--rate", type=float, default=RATE)
    parser.add_argument("--out", type=Path, help="default: the file in docs/results of as many steps")
    args = parser.parse_args(argv)
    runs = Runs(args.steps, args.rate)
    if args.what == "ask":
        ask(runs, args.out or runs.results, args.limit, args.strategies, args.keep)
        return
    for seed in args.seeds:
        for way in args.ways:
            if not runs.is_trained(runs.folder(way, seed)):
                train(runs, way, seed)


if __name__ == "__main__":
    main()
