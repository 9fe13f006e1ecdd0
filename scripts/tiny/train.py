"""Train the tiny model in stages: `tower` (patch codes), `llm` (questions about codes), `joint` (pictures, questions).

The first two are independent and may run side by side. Each stage is seeded, writes `<work>/<stage>.pt` every few
minutes and resumes from it; `--minutes` ends a stage with its learning rate decayed over that time. `export` writes the
checkpoint in LLaVA's layout.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from pathlib import Path

import sentencepiece
import torch
from tqdm import tqdm

from scripts.tiny.batches import Packer, answer_loss, codes_of, pixels_of, sample_batch
from scripts.tiny.codes import COORDINATES, FACTORS, OFFSETS, basis
from scripts.tiny.easy_vqa import EasyVqa
from scripts.tiny.model import WIDTH, TinyLlava, export
from scripts.tiny.tokenizer import train_tokenizer

WARMUP_STEPS = 100
SAVE_EVERY_S = 120
LOG_EVERY = 25
# Rare facts weigh more, or the tower leaves them out: one patch in an object is its centre, few patches show digits.
CENTER_WEIGHT, DIGIT_WEIGHT, OWNED_WEIGHT = 8.0, 6.0, 3.0
SPILL_WEIGHT = 0.1  # on everything outside the code's directions
DENSE_SHARE = 0.5  # of the patch loss in the joint stage
EASY_SHARE = 0.12


def learning_rate(peak: float, step: int, progress: float) -> float:
    """Warm-up, then a cosine over the stage's time."""
    return (
        peak * min(1.0, (step + 1) / WARMUP_STEPS) * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))
    )


def save(path: Path, state: dict) -> None:
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    os.replace(temporary, path)


class Stage:
    """The loop that all stages share: time-based schedule, logging, checkpoints."""

    def __init__(self, name: str, model: TinyLlava, parameters: list, args: argparse.Namespace):
        self.name, self.model, self.args = name, model, args
        self.path = Path(args.work) / f"{name}.pt"
        self.parameters = parameters
        self.optimizer = torch.optim.AdamW(parameters, lr=args.lr, betas=(0.9, 0.98), weight_decay=0.01)
        self.step, self.spent = 0, 0.0
        if self.path.exists():
            state = torch.load(self.path, weights_only=True)
            model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.step, self.spent = state["step"], state["spent"]

    def save(self) -> None:
        save(
            self.path,
            {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "step": self.step,
                "spent": self.spent,
            },
        )

    def run(self, loss_of) -> None:
        """`loss_of(rng, progress)` -> (loss, dict of figures to log)."""
        budget = self.args.minutes * 60
        last_save = time.monotonic()
        bar = tqdm(total=round(budget), initial=round(self.spent), desc=self.name, unit="s", mininterval=10)
        while self.spent < budget:
            began = time.monotonic()
            rng = random.Random(f"{self.name}-{self.args.seed}-{self.step}")
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(self.args.lr, self.step, self.spent / budget)
            with torch.autocast("cpu", torch.bfloat16):
                loss, figures = loss_of(rng, self.spent / budget)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
            self.step += 1
            took = time.monotonic() - began
            self.spent += took
            bar.update(round(self.spent) - bar.n)
            if self.step % LOG_EVERY == 0:
                print(
                    json.dumps(
                        {
                            "stage": self.name,
                            "step": self.step,
                            "s": round(self.spent),
                            "loss": round(loss.item(), 4),
                            **figures,
                        }
                    ),
                    flush=True,
                )
            if time.monotonic() - last_save > SAVE_EVERY_S:
                self.save()
                last_save = time.monotonic()
        self.save()


def dense_loss(features: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """Projected patches [B, 576, WIDTH] against codes [B, 576, COORDINATES]: weighted squared error in the basis."""
    weight = torch.ones(COORDINATES)
    weight[OFFSETS["center"]] = CENTER_WEIGHT
    weight[OFFSETS["digit"] : OFFSETS["center"]] = DIGIT_WEIGHT
    got = features.float() @ basis(WIDTH).T
    owned = (target[..., : FACTORS["color"]].sum(-1, keepdim=True) > 0).float()
    error = (got[..., :COORDINATES] - target) ** 2 * weight * (1 + OWNED_WEIGHT * owned)
    loss = error.sum(-1).mean() + SPILL_WEIGHT * (got[..., COORDINATES:] ** 2).sum(-1).mean()
    figures = {}
    with torch.no_grad():
        for name, size in FACTORS.items():
            span = slice(OFFSETS[name], OFFSETS[name] + size)
            has = target[..., span].sum(-1) > 0
            figures[name] = round(
                (got[..., span].argmax(-1) == target[..., span].argmax(-1))[has].float().mean().item(), 3
            )
    return loss, figures


def tower_loss(model: TinyLlava, args: argparse.Namespace):
    def loss_of(rng: random.Random, progress: float):
        scenes, _ = sample_batch(rng, args.batch, 0, 4)
        return dense_loss(model.image_features(pixels_of(scenes)), codes_of(scenes))

    return loss_of


def llm_loss(model: TinyLlava, packer: Packer, args: argparse.Namespace):
    """Questions about codes: few patches and objects first; noise stands for a tower's mistakes."""
    directions = basis(WIDTH)

    def loss_of(rng: random.Random, progress: float):
        scenes, questions = sample_batch(rng, args.batch, args.questions, 2 if progress < 0.1 else 4)
        codes = codes_of(scenes)
        full = rng.random() < max(0.0, (progress - 0.5))
        if not full:
            codes = thin(codes, rng, 0.15 if progress < 0.5 else 0.35)
        codes = codes * (1 + 0.15 * torch.randn_like(codes)) + 0.05 * torch.randn_like(codes)
        visual = codes @ directions[:COORDINATES]
        loss, right = answer_loss(model.llm, visual, packer.pack(questions, visual.shape[1]))
        return loss, {"right": round(right, 3), "tokens": visual.shape[1]}

    return loss_of


def thin(codes: torch.Tensor, rng: random.Random, share: float) -> torch.Tensor:
    """Keep every centre and a random share of the other patches, in order: a cheap stand-in for the whole picture."""
    size, count, _ = codes.shape
    keep = round(count * share)
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    priority = torch.rand(size, count, generator=generator)
    priority += 2 * codes[..., OFFSETS["center"]] + 0.4 * (codes[..., :8].sum(-1) > 0)
    index = priority.topk(keep, dim=1).indices.sort(dim=1).values
    return codes.gather(1, index[..., None].expand(-1, -1, codes.shape[-1]))


def joint_loss(model: TinyLlava, packer: Packer, easy: EasyVqa | None, args: argparse.Namespace):
    def loss_of(rng: random.Random, progress: float):
        outside = round(args.batch * EASY_SHARE) if easy else 0
        scenes, questions = sample_batch(rng, args.batch - outside, args.questions, 4)
        pixels = pixels_of(scenes)
        if easy:
            more_pixels, more_questions = easy.sample(rng, outside, args.questions)
            pixels, questions = torch.cat([pixels, more_pixels]), questions + more_questions
        visual = model.image_features(pixels)
        loss, right = answer_loss(model.llm, visual, packer.pack(questions, visual.shape[1]))
        dense, figures = dense_loss(visual[: len(scenes)], codes_of(scenes))
        return loss + DENSE_SHARE * dense, {"answers": round(loss.item(), 4), "right": round(right, 3), **figures}

    return loss_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("stage", choices=("tower", "llm", "joint", "export"))
    parser.add_argument("--work", default="outputs/tiny", help="folder of stage checkpoints")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--questions", type=int, default=8, help="per picture")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--no-easy-vqa", action="store_true", help="do not mix the easy-VQA train split in (needs the easy-vqa package)"
    )
    parser.add_argument("--out", default="playground/models/llava-tiny", help="export: the checkpoint's folder")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    work = Path(args.work)
    work.mkdir(parents=True, exist_ok=True)
    tokenizer_path = work / "tokenizer.model"
    if not tokenizer_path.exists():
        train_tokenizer(tokenizer_path)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path))
    model = TinyLlava(tokenizer.vocab_size())
    model.share_words(tokenizer)
    packer = Packer(tokenizer)
    if args.stage == "tower":
        parameters = [*model.tower.parameters(), *model.projector.parameters()]
        Stage("tower", model, [p for p in parameters if p.requires_grad], args).run(tower_loss(model, args))
        return
    if args.stage == "llm":
        Stage("llm", model, list(model.llm.parameters()), args).run(llm_loss(model, packer, args))
        return
    if args.stage == "joint":
        if not (work / "joint.pt").exists():
            seen = torch.load(work / "tower.pt", weights_only=True)["model"]
            said = torch.load(work / "llm.pt", weights_only=True)["model"]
            model.load_state_dict({k: said[k] if k.startswith("llm.") else v for k, v in seen.items()})
        easy = None if args.no_easy_vqa else EasyVqa("train")
        Stage("joint", model, list(model.parameters()), args).run(joint_loss(model, packer, easy, args))
        return
    model.load_state_dict(torch.load(work / "joint.pt", weights_only=True)["model"])
    export(model, tokenizer_path.read_bytes(), Path(args.out))


if __name__ == "__main__":
    main()
