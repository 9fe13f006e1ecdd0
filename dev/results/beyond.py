"""Strategies against each other at equal true budgets on the embedded models: `python -m dev.results.beyond`.

Every cell (model, questions, strategy, budget) is answered once and written to the JSON file at once, as a string of
right (1) and wrong (0) answers, so that differences are those of the same questions. Images are encoded once a model
and a question set. `--settings` and `--tasks` choose; finished cells are not repeated. The tables are made by
`python -m dev.results.beyond_table`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import torch
from tqdm import tqdm

import dart
from dart.cli.loading import TransformersModel
from dart.utils import UserError, exits_cleanly, provenance, write_json
from dev.results.render import RESULTS_FOLDER, ROOT
from dev.tiny import easy_vqa, mini
from llava.eval.engine.answers import read_lines
from llava.eval.engine.examples import Example, read_question_file
from llava.eval.engine.normalize import normalize_answer, vqa_accuracy
from llava.eval.engine.prompts import build_prompt, collate, encode
from llava.eval.engine.suite_table import UNPRUNED
from llava.eval.tasks.pope import says_yes
from llava.files import fingerprint, read_json
from llava.model.builder import load_pretrained_model

MODELS = ("llava-tiny", "llava-next-tiny", "qwen2-vl-tiny", "qwen2_5-vl-tiny")
SETS = ROOT / "playground" / "data" / "eval" / "beyond"
SEEDS = (2025, 2026, 2027)  # of the question samples; 2025 is the embedded mini set's
LAYER, NEW_TOKENS = 2, 8
EVERYTHING = 10**6  # a budget that no image exceeds
Right = Callable[[str], bool]


@dataclass(frozen=True)
class Asked:
    """One question and whether an answer to it is right."""

    example: Example
    right: Right


def textvqa(seed: int) -> list[Asked]:
    home = made(mini.make_textvqa, "textvqa", seed)
    rows = read_question_file(home / "llava_textvqa_val_v051_ocr.jsonl", home / "train_images")
    truth = read_json(home / "TextVQA_0.5.1_val.json")["data"]
    known = [each["answers"] for each in truth]
    return [Asked(row, partial(_close, known=answers)) for row, answers in zip(rows, known, strict=True)]


def pope(seed: int) -> list[Asked]:
    home = made(mini.make_pope, "pope", seed)
    rows = read_question_file(home / "llava_pope_test.jsonl", home / "val2014")
    truth = [row for name in mini.POPE_CATEGORIES for row in read_lines(home / "coco" / f"coco_pope_{name}.json")]
    return [Asked(row, partial(_agrees, yes=label["label"] == "yes")) for row, label in zip(rows, truth, strict=True)]


def easy(seed: int) -> list[Asked]:
    """A third of easy-VQA's test questions, in an order that does not depend on the seed."""
    home = SETS / "easy_vqa"
    if not (home / "answers.json").is_file():
        easy_vqa.convert("test", home, None)
    rows = read_question_file(home / "llava_easy_vqa_test.jsonl", home / "images")
    truth, order = read_json(home / "answers.json"), list(range(len(rows)))
    Random(0).shuffle(order)
    chosen = [rows[k] for k in order[SEEDS.index(seed) :: len(SEEDS)]]
    return [Asked(row, partial(_equals, known=truth[row.question_id])) for row in chosen]


TASKS: dict[str, Callable[[int], list[Asked]]] = {"textvqa": textvqa, "pope": pope, "easy_vqa": easy}


def _close(text: str, known: list[str]) -> bool:
    return vqa_accuracy(text, known) > 0.5


def _agrees(text: str, yes: bool) -> bool:
    return says_yes(text) == yes


def _equals(text: str, known: str) -> bool:
    return normalize_answer(text) == normalize_answer(known)


def made(make: Callable[[Path, Random], None], name: str, seed: int) -> Path:
    """The folder of a mini set of that seed, made when it is not there."""
    home, done = SETS / f"{name}-{seed}", SETS / f"{name}-{seed}.done"
    if not done.is_file():
        make(home, Random(f"mini-{name}-{seed}"))
        done.touch()
    return home


class Llava:
    """An embedded checkpoint in LLaVA's format."""

    def __init__(self, path: Path):
        self.tokenizer, self.model, self.processor, _ = load_pretrained_model(str(path), None, None, device="cpu")
        self.tower = self.model.get_vision_tower()

    def batch(self, examples: Sequence[Example]) -> dict[str, Any]:
        config = self.model.config
        prompts = [build_prompt(each.text, config, "vicuna_v1", 1) for each in examples]
        pairs = zip(prompts, examples, strict=True)
        return collate(
            [encode(prompt, [each.picture()], self.tokenizer, self.processor, config) for prompt, each in pairs]
        ).inputs(self.model)


class Qwen:
    """An embedded checkpoint of transformers' Qwen2-VL or Qwen2.5-VL."""

    def __init__(self, path: Path):
        loaded = TransformersModel(str(path), torch.device("cpu"), None, None)
        self.tokenizer, self.model, self.processor = loaded.tokenizer, loaded.model, loaded.processor
        self.tokenizer.padding_side = "left"
        self.tower = self.model.model.visual

    def batch(self, examples: Sequence[Example]) -> dict[str, Any]:
        turns = [[{"type": "image"}, {"type": "text", "text": each.text}] for each in examples]
        texts = [
            self.processor.apply_chat_template([{"role": "user", "content": turn}], add_generation_prompt=True)
            for turn in turns
        ]
        images = [each.picture() for each in examples]
        return dict(self.processor(text=texts, images=images, padding=True, return_tensors="pt"))


class Remembered:
    """A module whose output for a batch is computed once; `key` names the batch."""

    def __init__(self, module: torch.nn.Module):
        self.forward, self.key, self.known = module.forward, 0, {}
        module.forward = self

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.key not in self.known:
            self.known[self.key] = self.forward(*args, **kwargs)
        return copy(self.known[self.key])  # callers change it


@dataclass(frozen=True)
class Setting:
    """A row: a strategy with options of its own."""

    strategy: str
    options: dict[str, Any] = field(default_factory=dict)

    def config(self, keep: int, kind: str, seed: int) -> dart.DartConfig:
        own = {"strategy": self.strategy, "options": self.options}
        return dart.DartConfig(keep=keep, layer=LAYER, exact=True, seed=seed, budget_kind=kind, **own)


CONTROLS = {
    UNPRUNED: Setting("dart"),
    "dart": Setting("dart"),
    "random": Setting("random"),
    "uniform": Setting("uniform"),
    "pooling-at-k": Setting("pooling", {"layer": LAYER}),
    "divprune-at-k": Setting("divprune", {"layer": LAYER}),
    "cenprune-at-k": Setting("cenprune", {"layer": LAYER}),
    "mob": Setting("mob"),
    "spread": Setting("spread"),
}
BEFORE = {"divprune": Setting("divprune"), "pooling": Setting("pooling")}  # the LLM, for budgets as a mean over layers
MEMORY = {"mean": False, "distinct": False}
ABLATION = {
    "memory": Setting("spread", MEMORY),
    "memory-mean": Setting("spread", MEMORY | {"mean": True}),
    "memory-distinct": Setting("spread", MEMORY | {"distinct": True}),
    "ahead-1": Setting("spread", {"ahead": 1}),
    "4-rounds-ahead-1": Setting("spread", {"rounds": 4, "ahead": 1}),
    "16-rounds": Setting("spread", {"rounds": 16}),
    "token-a-round": Setting("spread", {"rounds": None}),
    "large-norms": Setting("spread", {"norms": 1.0}),
    "small-norms": Setting("spread", {"norms": -1.0}),
}
SETTINGS = CONTROLS | BEFORE | ABLATION


def answers_right(family: Any, batches: list[tuple[list[Asked], dict]], memory: Remembered, config: Any) -> dict:
    """The figures of a cell."""
    marks, report = "", None
    with dart.prune(family.model, config) as handle:
        for key, (asked, inputs) in enumerate(batches):
            memory.key = key
            out = family.model.generate(**inputs, do_sample=False, max_new_tokens=NEW_TOKENS)
            length = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
            texts = family.tokenizer.batch_decode(out[:, length:], skip_special_tokens=True)
            marks += "".join(str(int(each.right(text.strip()))) for each, text in zip(asked, texts, strict=True))
            report = handle.last or report
    return {"right": marks, "kept": report.visual_after[0], "mean": round(report.mean_visual_tokens[0], 1)}


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(CONTROLS))
    parser.add_argument("--keep", nargs="+", type=int, default=[28, 12, 6])
    parser.add_argument("--kind", choices=("after-layer", "mean-over-layers"), default="after-layer")
    parser.add_argument("--seeds", nargs="+", type=int, choices=SEEDS, default=list(SEEDS))
    parser.add_argument("--limit", type=int, default=60, help="questions of each sample")
    parser.add_argument("--batch", type=int, default=60)
    parser.add_argument("--out", type=Path, default=RESULTS_FOLDER / "beyond.json")
    args = parser.parse_args(argv)
    facts = {"limit": args.limit, "checkpoints_sha256": {m: fingerprint(str(_folder(m))) for m in MODELS}}
    known = read_json(args.out) if args.out.is_file() else {}
    if known and any(known[name] != value for name, value in facts.items()):
        raise UserError(f"{args.out} holds results of other checkpoints or another --limit: choose another --out")
    results = {"cells": {}} | known | facts
    for model in args.models:
        for task in args.tasks:
            for seed in args.seeds:
                _measure(model, task, seed, args, results)


def _folder(model: str) -> Path:
    return ROOT / "playground" / "models" / model


def _measure(model: str, task: str, seed: int, args: argparse.Namespace, results: dict[str, Any]) -> None:
    """The missing cells of one model on one sample of questions."""
    todo = {}
    for name in args.settings:
        for keep in [EVERYTHING] if name == UNPRUNED else args.keep:
            kind = "after-layer" if name == UNPRUNED else args.kind
            label = {EVERYTHING: "all"}.get(keep, f"{keep}" if kind == "after-layer" else f"mean-{keep}")
            key = f"{model}/{task}/{seed}/{name}/{label}"
            if key not in results["cells"]:
                todo[key] = SETTINGS[name].config(keep, kind, seed)
    if not todo:
        return
    family = (Qwen if model.startswith("qwen") else Llava)(_folder(model))
    asked = TASKS[task](seed)
    Random(0).shuffle(asked)
    asked = asked[: args.limit]
    parts = [asked[k : k + args.batch] for k in range(0, len(asked), args.batch)]
    batches = [(part, family.batch([each.example for each in part])) for part in parts]
    memory = Remembered(family.tower)
    with torch.inference_mode():
        for key, config in tqdm(todo.items(), desc=f"{model} {task} {seed}"):
            results["cells"][key] = answers_right(family, batches, memory, config)
            write_json(args.out, results | provenance())


if __name__ == "__main__":
    main()
