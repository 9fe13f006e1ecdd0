"""LLaVA's two stages from a language model without a projector: `python -m dev.results.epic_stages`.

The language model of the embedded model is saved without its projector; scripts/v1_5/pretrain.sh learns a new one,
scripts/v1_5/finetune.sh trains it and the language model on, both from the same conversations: this language model
never learned to write captions, so that they teach a projector nothing. Then the suite asks the embedded model, stage 1
and stage 2 the mini sets. A stage that is finished is not run again, a stopped one goes on.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from safetensors.torch import load_file, save_file
from tqdm import tqdm

from dart.utils import UserError, exits_cleanly, provenance, write_json, write_text
from dev.results.render import RESULTS_FOLDER, ROOT
from dev.results.speed import DOCS, replaced
from dev.tiny.llava_data import drawn_scene, talk
from dev.tiny.mini_common import encoded, write_bytes
from dev.tiny.questions import Mix, prompt_of, sample_questions
from llava.eval.engine.answers import read_lines
from llava.eval.engine.normalize import vqa_accuracy
from llava.eval.engine.suite_table import BLIND, TITLES, UNPRUNED, markdown
from llava.eval.suite import Setting, Suite
from llava.files import EMBEDDED_DATA, EMBEDDED_MODEL, fingerprint, read_json

RUNS = ROOT / "outputs" / "epic-stages"
LANGUAGE_MODEL, TOWER = RUNS / "language-model", EMBEDDED_MODEL / "clip-vit-tiny-patch14-336"
CONVERSATIONS = "conversations.json"
PROJECTOR = "model.mm_projector."
IMAGES, QUESTIONS = 8000, 8
BENCHMARKS = ["textvqa", "pope"]
KINDS = ("number", "color", "shape")
ACCURACY = "POPE, % right"
LOGGED = 10


@dataclass(frozen=True)
class Stage:
    """A script of scripts/v1_5, and what is set otherwise than it does for millions of samples on GPUs."""

    script: str
    steps: int
    batch: int
    rate: float
    flags: tuple[str, ...] = ()


STAGES = {
    "stage-1": Stage("pretrain.sh", steps=1000, batch=8, rate=3e-3, flags=("--version", "v1")),
    "stage-2": Stage("finetune.sh", steps=1000, batch=8, rate=5e-4),
}


def write_language_model() -> None:
    """The embedded model without its projector, as a Llama."""
    RUNS.mkdir(parents=True, exist_ok=True)
    shutil.copytree(EMBEDDED_MODEL, LANGUAGE_MODEL, ignore=shutil.ignore_patterns(TOWER.name), dirs_exist_ok=True)
    weights = load_file(LANGUAGE_MODEL / "model.safetensors")
    own = {name: tensor for name, tensor in weights.items() if not name.startswith(PROJECTOR)}
    save_file(own, LANGUAGE_MODEL / "model.safetensors", metadata={"format": "pt"})
    config = {k: v for k, v in read_json(LANGUAGE_MODEL / "config.json").items() if "mm_" not in k}
    config |= {"model_type": "llama", "architectures": ["LlamaForCausalLM"]}
    write_json(LANGUAGE_MODEL / "config.json", config)


def write_data(folder: Path, seed: int) -> None:
    """IMAGES images and a conversation of QUESTIONS turns about each."""
    rng, talks = Random(f"epic-stages-{seed}"), []
    for k in tqdm(range(IMAGES), desc="images"):
        name, scene = f"{k:05d}", drawn_scene(rng)
        write_bytes(folder / "images" / f"{name}.jpg", encoded(scene))
        questions = sample_questions(scene, rng, QUESTIONS, Mix())
        turns = [(prompt_of(each.text, each.request), each.answer) for each in questions]
        turns[0] = (f"<image>\n{turns[0][0]}", turns[0][1])
        talks.append({"id": name, "image": f"{name}.jpg", "conversations": talk(turns)})
    write_json(folder / CONVERSATIONS, talks)


def command(stage: Stage, seed: int) -> list[str]:
    flags = {
        "max_steps": stage.steps,
        "per_device_train_batch_size": stage.batch,
        "learning_rate": stage.rate,
        "seed": seed,
        "save_steps": 100,
        "bf16": False,
        "gradient_checkpointing": False,
        "dataloader_num_workers": 0,
    }
    return [
        "bash",
        f"scripts/v1_5/{stage.script}",
        *(str(w) for name, value in flags.items() for w in (f"--{name}", value)),
        *stage.flags,
    ]


def train(name: str, folder: Path, data: Path, projector: Path | None, seed: int) -> None:
    """Run a stage's script to its end. Raises UserError when it fails."""
    stage = STAGES[name]
    environment = {
        "NPROC": "1",
        "MODEL": str(LANGUAGE_MODEL),
        "VISION_TOWER": str(TOWER),
        "DATA_PATH": str(data / CONVERSATIONS),
        "IMAGE_FOLDER": str(data / "images"),
        "OUT": str(folder),
    } | ({} if projector is None else {"PROJECTOR": str(projector)})
    if subprocess.run(command(stage, seed), cwd=ROOT, env=os.environ | environment).returncode:
        raise UserError(f"{name} failed: {' '.join(command(stage, seed))}")


def is_trained(name: str, folder: Path) -> bool:
    state = folder / "trainer_state.json"
    return state.is_file() and read_json(state)["global_step"] == STAGES[name].steps


def losses(folder: Path) -> dict[str, float]:
    """Means over the first and the last LOGGED steps."""
    logged = [entry["loss"] for entry in read_json(folder / "trainer_state.json")["log_history"] if "loss" in entry]
    return {"first": fmean(logged[:LOGGED]), "last": fmean(logged[-LOGGED:])}


def ask(folder: Path) -> dict[str, Any]:
    """The suite's cells, unpruned."""
    flags = ["--batch-size", "16"]
    if (folder / "mm_projector.bin").is_file():
        flags += ["--model-base", str(LANGUAGE_MODEL)]
    out = RUNS / "suite" / f"{folder.name}.json"
    suite = Suite(str(folder), lambda _: EMBEDDED_DATA, out, out.parent / f"{out.stem}-answers", flags)
    suite.cells(BENCHMARKS, [Setting(UNPRUNED)])
    return suite.results["cells"] | {"textvqa/kinds": kinds(suite.runner.folder / "textvqa" / f"{UNPRUNED}.jsonl")}


def kinds(answers: Path) -> dict[str, float]:
    """Percent right of each kind of the mini TextVQA's questions, which come in turn."""
    known = read_json(EMBEDDED_DATA / "textvqa" / "TextVQA_0.5.1_val.json")["data"]
    pairs = zip(read_lines(answers), known, strict=True)
    right = [100 * vqa_accuracy(answer["text"], truth["answers"]) for answer, truth in pairs]
    return {kind: round(fmean(right[k :: len(KINDS)]), 1) for k, kind in enumerate(KINDS)}


def table(results: Mapping[str, Any]) -> str:
    def row(name: str, cells: Mapping[str, Any], setting: str, loss: str = "") -> list[str]:
        scores = [cells.get(f"{benchmark}/{setting}", {}).get("score") for benchmark in BENCHMARKS]
        parts = [cells.get("textvqa/kinds", {}).get(kind) for kind in KINDS]
        parts.append(cells.get(f"pope/{setting}", {}).get("accuracy"))
        return [name, *("-" if score is None else f"{score:.1f}" for score in (*scores, *parts)), loss]

    rows = [row(f"embedded model, {setting}", results["embedded"], setting) for setting in (BLIND, UNPRUNED)]
    for name, stage in results["stages"].items():
        loss = f"{stage['losses']['first']:.2f} to {stage['losses']['last']:.2f}"
        steps = f"{name}: {stage['steps']} steps of {stage['batch']}, rate {stage['rate']:g}"
        rows.append(row(steps, stage["cells"], UNPRUNED, loss))
    lines = markdown(
        [
            "model",
            *(TITLES[benchmark] for benchmark in BENCHMARKS),
            *KINDS,
            ACCURACY,
            f"loss, first and last {LOGGED} steps",
        ],
        rows,
    )
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    where = f"Commit {results['commit']}, {results['date']}; {results['hardware']}; {versions}."
    return "\n".join([*lines, "", f"One seed. {where} Command: `{results['command']}`"])


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0, help="of the data and of the runs")
    parser.add_argument("--out", type=Path, default=RESULTS_FOLDER / "epic-stages.json")
    args = parser.parse_args(argv)
    if not (LANGUAGE_MODEL / "config.json").is_file():
        write_language_model()
    data = RUNS / f"data-{args.seed}"
    if not (data / CONVERSATIONS).is_file():
        write_data(data, args.seed)
    results: dict[str, Any] = {"base_sha256": fingerprint(str(EMBEDDED_MODEL)), "seed": args.seed, "images": IMAGES}
    results |= {"questions": QUESTIONS, "stages": {}}
    projector = None
    for name in STAGES:
        folder = RUNS / f"{name}-{args.seed}"
        if not is_trained(name, folder):
            train(name, folder, data, projector, args.seed)
        results["stages"][name] = asdict(STAGES[name]) | {"losses": losses(folder), "cells": ask(folder)}
        projector = folder / "mm_projector.bin"
    whole = read_json(RESULTS_FOLDER / "llava-tiny.json")["cells"]
    names = [f"{benchmark}/{setting}" for benchmark in BENCHMARKS for setting in (UNPRUNED, BLIND)]
    results["embedded"] = {name: whole[name] for name in names}
    write_json(args.out, results | provenance())
    page = DOCS / "training.md"
    write_text(page, replaced(page.read_text(), "stages", partial(table, results | provenance())))


if __name__ == "__main__":
    main()
