"""Train the tiny Qwen2-VL and Qwen2.5-VL in stages, as `dev.tiny.train` does LLaVA's.

`tower` (a family's, on windows of images), `llm` (the tiny LLaVA's layers learn Qwen's format, M-RoPE, several
images; one for both families), `joint` (a family's). `export` writes the checkpoints.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import sentencepiece
import torch
from tokenizers import Tokenizer

from dev.tiny.codes import COORDINATES, FACTS, POSITION_SCALE, basis
from dev.tiny.losses import dense_loss, turns_loss
from dev.tiny.model import WIDTH
from dev.tiny.questions import Mix
from dev.tiny.qwen.export import export
from dev.tiny.qwen.model import FAMILIES, PACES, TinyQwen
from dev.tiny.qwen.pictures import MIN_TOKENS, SceneBank, codes_of, frames_of, sample_grid, scenes_of_size
from dev.tiny.qwen.prompts import ChatPacker, Visual, head_of, thin
from dev.tiny.qwen.samples import MAX_SHAPES, Sample, sample
from dev.tiny.qwen.tokenizer import carry_over, train_tokenizer
from dev.tiny.train import DENSE_SHARE, LossOf, Stage, rounded, stage_parser, started, tokens_to_keep
from dev.tiny.world import IMAGE_SIZES

WINDOW_SIDE, WINDOWS_PER_PICTURE, WINDOWS_UNTIL = 6, 5, 0.9  # visual tokens per side
BANK_SIZE, BANK_GROWTH, BANK_TURNOVER = 4000, 24, 4
WHOLE_TOKENS = (MIN_TOKENS, 320)
SITE_LAYER, SITE_WEIGHT = 1, 0.2  # the second layer: what DART prunes after it knows its place
TOKEN_SHARES = ((0.6, 0.25), (0.9, 0.5), (1.0, 1.0))  # (until, share of the visual tokens) in the stage `llm`


def tower_loss(model: TinyQwen, args: argparse.Namespace) -> LossOf:
    bank = SceneBank(BANK_SIZE)

    def loss_of(rng: random.Random, progress: float):
        if progress < WINDOWS_UNTIL:
            bank.refresh(rng, BANK_GROWTH, BANK_TURNOVER, MAX_SHAPES)
            frames, codes = bank.windows(rng, args.batch * WINDOWS_PER_PICTURE, WINDOW_SIDE)
        else:
            size = rng.choice(IMAGE_SIZES)
            scenes, grid = scenes_of_size(rng, size, args.batch, MAX_SHAPES), sample_grid(rng, size, WHOLE_TOKENS)
            frames, codes = frames_of(scenes, grid), codes_of(scenes, grid)[0]
        return dense_loss(model.image_features(frames.to(args.device)), codes.to(args.device))

    return loss_of


@contextmanager
def output_of(layer: torch.nn.Module) -> Iterator[list[torch.Tensor]]:
    """A list that receives what the layer returns."""
    outputs: list[torch.Tensor] = []
    hook = layer.register_forward_hook(lambda _, __, out: outputs.append(out[0] if isinstance(out, tuple) else out))
    try:
        yield outputs
    finally:
        hook.remove()


def site_loss(hidden: torch.Tensor, sites: torch.Tensor) -> tuple[torch.Tensor, float]:
    """How far visual tokens [B, P, D] are from saying where they are, as LLaVA's tower does (`sites`, NaN for text).

    Qwen's towers have no absolute positions: the first layers have to work them out from M-RoPE. Returns the loss and
    the mean error of the column, as a share of the image's width.
    """
    seen = ~sites[..., 0].isnan()
    error = hidden.float()[seen] @ basis(WIDTH)[FACTS:COORDINATES].T.to(hidden.device) - sites[seen]
    column = error.shape[-1] // 2
    return (error**2).sum(-1).mean(), round(error[:, column].abs().mean().item() / (2 * POSITION_SCALE), 3)


def answers_of(model: TinyQwen, packer: ChatPacker, visuals: list[Visual], step: Sample, mix: Mix):
    """The loss of a step's questions; the mix learns what single images were asked."""
    texts = packer.pack(step.questions).to(visuals[0].tokens.device)
    head = head_of(model.text.embed_tokens, packer, visuals)
    with output_of(model.text.layers[SITE_LAYER]) as outputs:
        loss, figures, right = turns_loss(model.llm, head.embeddings, head.positions, head.begin, texts, head.owners)
    site, figures["site"] = site_loss(outputs[0][:, : head.sites.shape[1]], head.sites)
    loss = loss + SITE_WEIGHT * site
    if step.kind == "one":
        mix.learn([q.category for q in texts.questions], right)
    return loss, {"kind of step": step.kind, **figures}


def llm_loss(model: TinyQwen, packer: ChatPacker, args: argparse.Namespace) -> LossOf:
    """Questions about codes; noise stands for a tower's mistakes."""
    directions, mix = basis(WIDTH)[:FACTS].to(args.device), Mix()

    def loss_of(rng: random.Random, progress: float):
        step = sample(rng, args.batch, args.questions, mix)
        share = next(share for until, share in TOKEN_SHARES if progress <= until)
        visuals = []
        for shown in step.shown:
            codes, owners = shown.facts()
            noisy = codes * (1 + 0.15 * torch.randn_like(codes)) + 0.05 * torch.randn_like(codes)
            tokens = noisy.to(args.device) @ directions
            visual = shown.visual(tokens, owners.to(args.device), rng.choice(list(PACES.values())))
            visuals.append(thin(visual, tokens_to_keep(codes, owners, rng, share).to(args.device)))
        loss, figures = answers_of(model, packer, visuals, step, mix)
        return loss, {**figures, **rounded(mix)}

    return loss_of


def joint_loss(model: TinyQwen, packer: ChatPacker, args: argparse.Namespace) -> LossOf:
    mix = Mix()

    def loss_of(rng: random.Random, progress: float):
        step = sample(rng, args.batch, args.questions, mix)
        visuals, dense = [], 0.0
        for shown in step.shown:
            seen = model.image_features(shown.frames().to(args.device))
            tokens = torch.cat(seen.chunk(len(shown.moments)), 1)
            codes, owners = (each.to(args.device) for each in shown.facts())
            visuals.append(shown.visual(tokens, owners, PACES[args.family]))
            loss, figures = dense_loss(tokens, codes)
            dense = dense + loss / len(step.shown)
        loss, answers = answers_of(model, packer, visuals, step, mix)
        return loss + DENSE_SHARE * dense, {**answers, **figures, **rounded(mix)}

    return loss_of


def weights_in(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=True, map_location="cpu")["model"]


def start(model: TinyQwen, args: argparse.Namespace, tokenizer: Tokenizer) -> None:
    """The weights with which a stage begins."""
    work = Path(args.work)
    if args.stage == "llm":
        llava = weights_in(Path(args.llava) / "joint.pt")
        pieces = sentencepiece.SentencePieceProcessor(model_file=str(Path(args.llava) / "tokenizer.model"))
        names = ("llm.model.embed_tokens.weight", "llm.lm_head.weight")
        model.start_from_llava(llava, [carry_over(llava[name], pieces, tokenizer) for name in names])
    elif args.stage == "joint":
        seen, said = weights_in(work / f"{args.family}-tower.pt"), weights_in(work / "llm.pt")
        model.load_state_dict({k: v if k.startswith("net.model.visual.") else said[k] for k, v in seen.items()})


def main() -> None:
    parser = stage_parser(__doc__, ("tower", "llm", "joint", "export"), "outputs/tiny-qwen")
    parser.add_argument("--family", choices=FAMILIES, default=FAMILIES[0])
    parser.add_argument("--llava", default="outputs/tiny", help="the folder where dev.tiny.train worked")
    parser.set_defaults(minutes=15)
    args = started(parser)
    work = args.work
    path = work / "tokenizer.json"
    if not path.exists():
        train_tokenizer(path)
    tokenizer = Tokenizer.from_file(str(path))
    if args.stage == "export":
        for family in FAMILIES:
            if (work / f"{family}-joint.pt").exists():
                model = TinyQwen(family, tokenizer)
                model.load_state_dict(weights_in(work / f"{family}-joint.pt"))
                export(model, tokenizer, args.out / f"{family.replace('_vl', '-vl')}-tiny")
        return
    model = TinyQwen(args.family, tokenizer)
    name = "llm" if args.stage == "llm" else f"{args.family}-{args.stage}"
    if not (work / f"{name}.pt").exists():
        start(model, args, tokenizer)
    model.to(args.device)
    packer = ChatPacker(tokenizer)
    if args.stage == "tower":
        model.text.requires_grad_(False)
        loss_of = tower_loss(model, args)
    elif args.stage == "llm":
        model.tower.requires_grad_(False)
        loss_of = llm_loss(model, packer, args)
    else:
        loss_of = joint_loss(model, packer, args)
    Stage(model, model, args, name).run(loss_of)


if __name__ == "__main__":
    main()
