"""DART's command line flags, under the original's names, for every command."""

from __future__ import annotations

import argparse
from typing import Any

import torch

import dart
from dart.utils import UserError

DEFAULT_LAYER, DEFAULT_PIVOTS = 2, 4
DEFAULT_TOKENS, DEFAULT_NEXT_TOKENS = 128, 320
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
    group.add_argument("--sparse", nargs="?", type=_switch, const=True, default=False, help="prune vision tokens")
    group.add_argument(
        "--pruned_layer", type=int, default=DEFAULT_LAYER, help="tokens are dropped before this decoder layer"
    )
    group.add_argument("--image_token_start_index", type=int, help="checked against the input when given")
    group.add_argument("--image_token_length", type=int, help="checked against the input when given")
    group.add_argument(
        "--reduction_ratio", type=float, help="share of vision tokens to drop, used when --max_num_trunction is absent"
    )
    group.add_argument(
        "--max_num_trunction",
        type=_tokens,
        help=f"vision tokens to keep (default without a ratio: {DEFAULT_TOKENS}, LLaVA-NeXT {DEFAULT_NEXT_TOKENS})",
    )
    group.add_argument("--pivot_image_token", type=int, default=DEFAULT_PIVOTS)
    group.add_argument("--pivot_text_token", type=int, default=DEFAULT_PIVOTS)
    group.add_argument(
        "--pivot_order", default="original", choices=("original", "norm"), help="in which order the pivots choose"
    )
    group.add_argument(
        "--scope",
        default="joint",
        choices=("joint", "span"),
        help="one budget for all vision tokens of a prompt (the original) or a share for each picture or tile",
    )
    group.add_argument("--strategy", default="dart", help="dart, random, uniform or a strategy of your own")
    group.add_argument("--seed", type=int, default=0, help="of random strategies and of sampling")
    group.add_argument("--attn_implementation", choices=("eager", "sdpa", "flash_attention_2", "flex_attention"))


def dart_config_from_args(args: argparse.Namespace) -> dict[str, Any] | None:
    """The original's DART_config dictionary, validated; None without --sparse. Raises UserError naming the flag."""
    if args.reduction_ratio is not None and not 0 < args.reduction_ratio < 1:
        raise UserError(
            f"--reduction_ratio must be between 0 and 1 (both excluded), got {args.reduction_ratio}; 0.778 drops 77.8 %"
        )
    tokens, next_tokens = args.max_num_trunction, None
    if tokens is None and args.reduction_ratio is None:
        tokens, next_tokens = DEFAULT_TOKENS, DEFAULT_NEXT_TOKENS
    mapping = {
        "K": args.pruned_layer,
        "max_num_trunction": tokens,
        "reduction_ratio": args.reduction_ratio,
        "retain_token_num_for_llava_next": next_tokens,
        "pivot_image_token": args.pivot_image_token,
        "pivot_text_token": args.pivot_text_token,
        "pivot_order": args.pivot_order,
        "scope": args.scope,
        "strategy": args.strategy,
        "seed": args.seed,
    }
    try:
        dart.DartConfig.from_original(mapping)
    except (TypeError, ValueError) as error:
        raise UserError(f"DART flags: {error}") from error
    return mapping if args.sparse else None


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
