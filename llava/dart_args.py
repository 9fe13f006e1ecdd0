"""DART's command line flags, under the original's names, for every command."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

import dart
from dart import DartConfig
from dart.config import BUDGET_KINDS
from dart.utils import UserError
from llava.model.anyres import is_anyres

DEFAULTS = DartConfig()
NEXT_TOKENS = 320  # LLaVA-NeXT's, as `retain_token_num_for_llava_next` of the research code
SETTINGS = [
    "pruned_layer", "max_num_trunction", "reduction_ratio", "pivot_image_token", "pivot_text_token", "pivot_order",
    "scope", "strategy", "seed", "exact", "budget_kind",
]  # fmt: skip
TRUE_WORDS, FALSE_WORDS = ("true", "1", "yes"), ("false", "0", "no")


def _switch(text: str) -> bool:
    if text.lower() in TRUE_WORDS:
        return True
    if text.lower() in FALSE_WORDS:
        return False
    raise argparse.ArgumentTypeError(f"expected True or False, got {text!r}")


def _tokens(text: str) -> int | None:
    """A number of tokens, or None for absent."""
    if text.lower() in ("none", ""):
        return None
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number of tokens of 1 or more, or None, got {text!r}")
    return int(text)


def add_dart_arguments(parser: argparse.ArgumentParser) -> None:
    """Add DART's flags to a command."""
    group = parser.add_argument_group("DART")
    group.add_argument("--sparse", nargs="?", type=_switch, const=True, default=False, help="prune visual tokens")
    group.add_argument(
        "--pruned_layer", type=int, default=DEFAULTS.layer, help="tokens are dropped before this decoder layer"
    )
    group.add_argument("--image_token_start_index", type=int, help="checked against the input when given")
    group.add_argument("--image_token_length", type=int, help="checked against the input when given")
    group.add_argument(
        "--reduction_ratio", type=float, help="share of visual tokens to drop, used when --max_num_trunction is absent"
    )
    group.add_argument(
        "--max_num_trunction",
        type=_tokens,
        help=f"visual tokens to keep (default without a ratio: {DEFAULTS.keep}, LLaVA-NeXT {NEXT_TOKENS})",
    )
    group.add_argument("--pivot_image_token", type=int, default=DEFAULTS.image_pivots, help="pivots in the image (4)")
    group.add_argument("--pivot_text_token", type=int, default=DEFAULTS.text_pivots, help="pivots in the text (4)")
    group.add_argument(
        "--pivot_order",
        default="original",
        choices=("original", "norm"),
        help="in which order the pivots choose: the research code's (default), or by falling norm",
    )
    group.add_argument(
        "--scope",
        default="joint",
        choices=("joint", "span"),
        help="one budget for all visual tokens of a prompt (the original) or a share for each image or tile",
    )
    group.add_argument(
        "--strategy", default=DEFAULTS.strategy, help="how to choose them (dart); a wrong name lists all"
    )
    group.add_argument(
        "--exact",
        action="store_const",
        const=True,
        help="keep exactly the budget; without it every strategy keeps what DART keeps with its roundings",
    )
    group.add_argument(
        "--budget_kind",
        choices=BUDGET_KINDS,
        help=f"of what the budget is a number (default {DEFAULTS.budget_kind})",
    )
    group.add_argument("--seed", type=int, default=DEFAULTS.seed, help="of random strategies and of sampling")
    group.add_argument(
        "--attn_implementation",
        choices=("eager", "sdpa", "flash_attention_2", "flex_attention"),
        help="attention kernel (default: transformers' choice)",
    )


def dart_config(args: argparse.Namespace, anyres: bool = False) -> DartConfig | None:
    """The flags as a DartConfig; None without --sparse. Raises UserError naming the flag, also without --sparse.

    anyres: the checkpoint is a LLaVA-NeXT one, which keeps more tokens when no flag says how many.
    """
    keep, ratio = args.max_num_trunction, args.reduction_ratio
    if ratio is not None and not 0 < ratio < 1:
        raise UserError(f"--reduction_ratio must be between 0 and 1 (both excluded), got {ratio}; 0.778 drops 77.8 %")
    if keep is None and ratio is None:
        keep = NEXT_TOKENS if anyres else DEFAULTS.keep
    try:
        config = DartConfig(
            keep=keep,
            reduction_ratio=ratio if keep is None else None,
            layer=args.pruned_layer,
            image_pivots=args.pivot_image_token,
            text_pivots=args.pivot_text_token,
            pivot_order=args.pivot_order,
            scope=args.scope,
            strategy=args.strategy,
            seed=args.seed,
            exact=bool(args.exact),  # False: every strategy keeps what DART keeps, so that rows of one budget are equal
            budget_kind=args.budget_kind or DEFAULTS.budget_kind,
        )
        dart.strategies.in_model(config.strategy)
    except (TypeError, ValueError) as error:
        raise UserError(f"DART flags: {error}") from error
    return config if args.sparse else None


def pruned(model: Any, args: argparse.Namespace) -> AbstractContextManager[dart.PruneHandle | None]:
    """`with` DART on the model, as the flags say; None is its handle without --sparse."""
    config = dart_config(args, is_anyres(model.config))
    return nullcontext() if config is None else dart.prune(model, config)


def dart_settings(args: argparse.Namespace) -> dict[str, Any] | None:
    """What a resumed run must have in common with its first part; None without --sparse."""
    return {name: getattr(args, name) for name in SETTINGS} if args.sparse else None


def check_image_span(args: argparse.Namespace, span_ids: torch.Tensor) -> None:
    """Compare --image_token_start_index / --image_token_length, with a row's first run of visual tokens ([S])."""
    visual = span_ids > 0
    start = int(visual.int().argmax()) if bool(visual.any()) else 0
    length = int(visual[start:].int().cumprod(0).sum())
    for flag, given, real in (
        ("--image_token_start_index", args.image_token_start_index, start),
        ("--image_token_length", args.image_token_length, length),
    ):
        if given is not None and given != real:
            raise UserError(
                f"{flag} is {given} but the input's picture has {real}; leave the flag out, it is found in the input"
            )
