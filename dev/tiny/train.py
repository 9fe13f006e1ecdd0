"""Train the tiny models in stages: `tower` (patch codes), `llm` (questions about codes), `joint` (images, questions).

`next` goes on from `joint` with LLaVA-NeXT's overviews and tiles, the tower frozen. The first two are independent and
may run side by side. Each stage is seeded, writes `<work>/<stage>.pt` every few minutes and resumes from it;
`--minutes` ends a stage with its learning rate decayed over that time. `export` writes the checkpoints in LLaVA's
layout.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import sentencepiece
import torch
from tqdm import tqdm

from dev.tiny.batches import Packer, SceneBank, codes_of, pixels_of, sample_scenes
from dev.tiny.choices import ask_step
from dev.tiny.codes import COORDINATES, OFFSETS, basis
from dev.tiny.easy_vqa import EasyVqa
from dev.tiny.losses import answer_loss, dense_loss
from dev.tiny.model import WIDTH, TinyLlava, export
from dev.tiny.questions import Mix
from dev.tiny.tiles import PINPOINTS, TinyNext, scenes_of_one_size, squeezed, stack_views
from dev.tiny.tokenizer import train_tokenizer
from llava.eval.probe.drawing import render

WARMUP_STEPS = 100
FLOOR = 0.02  # of the peak learning rate, at the end
SAVE_EVERY_S = 120
LOG_EVERY = 25
MAX_SHAPES = 4
# Tower: windows first, whole images for the last part of the time.
WINDOW_SIDE, BANK_SIZE, BANK_GROWTH, BANK_TURNOVER = 10, 6000, 24, 4
WINDOWS_UNTIL = 0.75
WINDOWS_PER_PICTURE = 6  # as many windows take the time of one image
# Language model: few objects, few patches and brief questions first.
FEW_SHAPES, FEW_SHAPES_UNTIL = 2, 0.1
BRIEF_UNTIL = 0.7
PATCH_SHARES = ((0.7, 0.15), (0.95, 0.35), (1.0, 1.0))  # (until, share of the patches)
DENSE_SHARE = 0.5  # of the patch loss in the joint stage
EASY_SHARE = 0.12  # of the joint stage's images are easy-VQA's

LossOf = Callable[[random.Random, float], tuple[torch.Tensor, dict[str, float]]]


def learning_rate(peak: float, step: int, progress: float) -> float:
    """Warm-up, then a cosine over the stage's time."""
    decay = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    return peak * min(1.0, (step + 1) / WARMUP_STEPS) * (FLOOR + (1 - FLOOR) * decay)


def optimizers_of(named: list[tuple[str, torch.nn.Parameter]], lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the layers' matrices (updates scaled to AdamW's size), AdamW for embeddings, heads, norms and biases."""
    matrices = [p for n, p in named if p.ndim == 2 and ("layers." in n or "blocks." in n)]
    ids = {id(p) for p in matrices}
    rest = [p for _, p in named if id(p) not in ids]
    return [
        torch.optim.Muon(matrices, lr=lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=lr, betas=(0.9, 0.98), weight_decay=0.01),
    ]


class Stage:
    """The loop that all stages share: time-based schedule, logging, checkpoints."""

    def __init__(self, model: torch.nn.Module, part: torch.nn.Module, args: argparse.Namespace, name: str = ""):
        self.model, self.args = model, args
        self.path = Path(args.work) / f"{name or args.stage}.pt"
        named = [(n, p) for n, p in part.named_parameters() if p.requires_grad]
        self.parameters = [p for _, p in named]
        self.optimizers = optimizers_of(named, args.lr)
        self.step, self.spent = 0, 0.0
        if self.path.exists():
            state = torch.load(self.path, weights_only=True, map_location=args.device)
            model.load_state_dict(state["model"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            self.step, self.spent = state["step"], state["spent"]

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "step": self.step,
            "spent": self.spent,
        }
        temporary = self.path.with_suffix(".tmp")
        torch.save(state, temporary)
        os.replace(temporary, self.path)

    def update(self, loss_of: LossOf, progress: float) -> dict[str, float]:
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(self.args.lr, self.step, progress)
        rng = random.Random(f"{self.args.stage}-{self.args.seed}-{self.step}")
        with torch.autocast(self.args.device, torch.bfloat16):
            loss, figures = loss_of(rng, progress)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        return {"loss": round(loss.item(), 4), **figures}

    def run(self, loss_of: LossOf) -> None:
        budget = self.args.minutes * 60
        last_save = time.monotonic()
        bar = tqdm(total=round(budget), initial=round(self.spent), desc=self.args.stage, unit="s", mininterval=10)
        while self.spent < budget:
            began = time.monotonic()
            figures = self.update(loss_of, self.spent / budget)
            self.spent += time.monotonic() - began
            bar.update(round(self.spent) - bar.n)
            if self.step % LOG_EVERY == 0:
                head = {"stage": self.args.stage, "step": self.step, "s": round(self.spent)}
                print(json.dumps({**head, **figures}), flush=True)
            if time.monotonic() - last_save > SAVE_EVERY_S:
                self.save()
                last_save = time.monotonic()
        self.save()


def tower_loss(model: TinyLlava, args: argparse.Namespace) -> LossOf:
    bank = SceneBank(BANK_SIZE)

    def loss_of(rng: random.Random, progress: float):
        if progress < WINDOWS_UNTIL:
            bank.refresh(rng, BANK_GROWTH, BANK_TURNOVER, MAX_SHAPES)
            pixels, patches, codes = bank.windows(rng, args.batch * WINDOWS_PER_PICTURE, WINDOW_SIDE)
            features = model.image_features(pixels.to(args.device), patches.to(args.device))
        else:
            scenes = sample_scenes(rng, args.batch, MAX_SHAPES)
            features, codes = model.image_features(pixels_of(scenes).to(args.device)), codes_of(scenes)[0]
        return dense_loss(features, codes.to(args.device))

    return loss_of


def llm_loss(model: TinyLlava, packer: Packer, args: argparse.Namespace) -> LossOf:
    """Questions about codes; noise stands for a tower's mistakes."""
    directions, mix = basis(WIDTH).to(args.device), Mix()

    def loss_of(rng: random.Random, progress: float):
        few = progress < FEW_SHAPES_UNTIL and not args.init
        brief = progress < BRIEF_UNTIL and not args.init
        scenes = sample_scenes(rng, args.batch, FEW_SHAPES if few else MAX_SHAPES)
        questions = ask_step(rng, scenes, args.questions, mix, 0.0 if brief else args.choices)
        share = next(share for until, share in PATCH_SHARES if progress <= until)
        codes, owners = (each.to(args.device) for each in thin(*codes_of(scenes), rng, share))
        codes = codes * (1 + 0.15 * torch.randn_like(codes)) + 0.05 * torch.randn_like(codes)
        visual = codes @ directions[:COORDINATES]
        texts = packer.pack(questions, brief).to(args.device)
        loss, figures, right = answer_loss(model.llm, visual, texts, owners)
        mix.learn([q.category for q in texts.questions], right)
        return loss, {**figures, "patches": visual.shape[1], **rounded(mix)}

    return loss_of


def rounded(mix: Mix) -> dict[str, float]:
    return {name: round(share, 2) for name, share in mix.right.items()}


def tokens_to_keep(codes: torch.Tensor, owners: torch.Tensor, rng: random.Random, share: float) -> torch.Tensor:
    """Every centre and a random share of the others, int64 [B, K] ascending: cheap steps, and practice for pruning."""
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    priority = torch.rand(codes.shape[:2], generator=generator)
    priority += 2 * codes[..., OFFSETS["center"]] + 0.4 * (owners >= 0)
    return priority.topk(round(codes.shape[1] * share), dim=1).indices.sort(dim=1).values


def thin(
    codes: torch.Tensor, owners: torch.Tensor, rng: random.Random, share: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """The patches that `tokens_to_keep` chooses: a cheap stand-in for the whole image."""
    index = tokens_to_keep(codes, owners, rng, share)
    return codes.gather(1, index[..., None].expand(-1, -1, codes.shape[-1])), owners.gather(1, index)


def joint_loss(model: TinyLlava, packer: Packer, easy: EasyVqa | None, args: argparse.Namespace) -> LossOf:
    mix = Mix()

    def loss_of(rng: random.Random, progress: float):
        outside = round(args.batch * EASY_SHARE) if easy else 0
        scenes = sample_scenes(rng, args.batch - outside, MAX_SHAPES)
        questions = ask_step(rng, scenes, args.questions, mix, args.choices)
        pixels, each = pixels_of(scenes), len(questions[0])
        if easy:
            more_pixels, more_questions = easy.sample(rng, outside, each)
            pixels, questions = torch.cat([pixels, more_pixels]), questions + more_questions
        visual = model.image_features(pixels.to(args.device))
        codes, owners = (labels.to(args.device) for labels in codes_of(scenes))
        owners = torch.cat([owners, owners.new_full((outside, owners.shape[1]), -1)])  # easy-VQA says nothing of places
        texts = packer.pack(questions).to(args.device)
        loss, figures, right = answer_loss(model.llm, visual, texts, owners)
        ours = each * len(scenes)
        mix.learn([q.category for q in texts.questions[:ours]], right[:ours])
        figures["easy-VQA"] = round(sum(right[ours:]) / max(1, len(right) - ours), 3)
        dense, seen = dense_loss(visual[: len(scenes)], codes[: len(scenes)])
        return loss + DENSE_SHARE * dense, {**figures, **seen, **rounded(mix)}

    return loss_of


def next_loss(model: TinyNext, packer: Packer, args: argparse.Namespace) -> LossOf:
    """Overviews with tiles; the questions' objects are to be looked at in the overview."""
    mix = Mix()

    def loss_of(rng: random.Random, progress: float):
        scenes = scenes_of_one_size(rng, args.batch, MAX_SHAPES)
        questions = ask_step(rng, scenes, args.questions, mix, args.choices)
        views = stack_views([render(scene) for scene in scenes]).to(args.device)
        visual, overview = model.merged_features(views, scenes[0].size)
        codes, owners = (labels.to(args.device) for labels in codes_of([squeezed(scene) for scene in scenes]))
        tiles = owners.new_full((len(scenes), visual.shape[1] - owners.shape[1]), -1)
        texts = packer.pack(questions).to(args.device)
        loss, figures, right = answer_loss(model.llm, visual, texts, torch.cat([owners, tiles], 1))
        mix.learn([q.category for q in texts.questions], right)
        dense, seen = dense_loss(overview, codes)
        return loss + DENSE_SHARE * dense, {**figures, **seen, **rounded(mix)}

    return loss_of


def start_of_joint(work: Path) -> dict[str, torch.Tensor]:
    """Tower and projector from the first stage, the language model from the second."""
    seen = torch.load(work / "tower.pt", weights_only=True)["model"]
    said = torch.load(work / "llm.pt", weights_only=True)["model"]
    return {k: said[k] if k.startswith("llm.") else v for k, v in seen.items()}


def export_all(model: TinyNext, tokenizer_model: bytes, work: Path, out: Path) -> None:
    """llava-tiny from the stage `joint`, llava-next-tiny from `next`; a stage that is not there is left out."""
    for stage, name in (("joint", "llava-tiny"), ("next", "llava-next-tiny")):
        path = work / f"{stage}.pt"
        if path.exists():
            model.load_state_dict(torch.load(path, weights_only=True, map_location="cpu")["model"], strict=False)
            newline = model.newline if stage == "next" else None
            export(model, tokenizer_model, out / name, newline, PINPOINTS)


def stage_parser(description: str | None, stages: Sequence[str], work: str) -> argparse.ArgumentParser:
    """The arguments of every training; work: where stage checkpoints lie by default."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("stage", choices=stages)
    parser.add_argument("--work", type=Path, default=Path(work), help="folder of stage checkpoints")
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--batch", type=int, default=16, help="rows per step (tower: several times as many windows)")
    parser.add_argument("--questions", type=int, default=10, help="per row")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("playground/models"), help="export: folder of the checkpoints")
    return parser


def started(parser: argparse.ArgumentParser) -> argparse.Namespace:
    """The parsed arguments, with threads, seed and work folder set up."""
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.work.mkdir(parents=True, exist_ok=True)
    return args


def main() -> None:
    parser = stage_parser(__doc__, ("tower", "llm", "joint", "next", "export"), "outputs/tiny")
    parser.add_argument("--init", help="start from this stage checkpoint's weights, without the curriculum")
    parser.add_argument("--choices", type=float, default=0.0, help="share of the steps that ask with lettered options")
    parser.add_argument(
        "--no-easy-vqa", action="store_true", help="do not mix the easy-VQA train split in (needs the easy-vqa package)"
    )
    args = started(parser)
    work = args.work
    tokenizer_path = work / "tokenizer.model"
    if not tokenizer_path.exists():
        train_tokenizer(tokenizer_path)
    tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(tokenizer_path))
    model = TinyNext(tokenizer.vocab_size()) if args.stage in ("next", "export") else TinyLlava(tokenizer.vocab_size())
    if args.stage == "export":
        export_all(model, tokenizer_path.read_bytes(), work, args.out)
        return
    model.share_words(tokenizer)
    if args.init:
        model.load_state_dict(torch.load(args.init, weights_only=True)["model"])
    elif args.stage == "next" and not (work / "next.pt").exists():
        model.load_state_dict(torch.load(work / "joint.pt", weights_only=True)["model"], strict=False)
    elif args.stage == "joint" and not (work / "joint.pt").exists():
        model.load_state_dict(start_of_joint(work))
    model.to(args.device)
    packer = Packer(tokenizer)
    if args.stage == "next":
        model.tower.requires_grad_(False)
        Stage(model, model, args).run(next_loss(model, packer, args))
    elif args.stage == "tower":
        model.llm.requires_grad_(False)
        Stage(model, model, args).run(tower_loss(model, args))
    elif args.stage == "llm":
        Stage(model, model.llm, args).run(llm_loss(model, packer, args))
    else:
        easy = None if args.no_easy_vqa else EasyVqa("train")
        Stage(model, model, args).run(joint_loss(model, packer, easy, args))


if __name__ == "__main__":
    main()
