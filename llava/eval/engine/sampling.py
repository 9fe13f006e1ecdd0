"""Sampling that depends on the question alone: not on its batch, its chunk, or where a run was resumed."""

from __future__ import annotations

import argparse
import hashlib
import math
from collections.abc import Sequence
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from dart.utils import UserError

TOP_K = 50  # transformers' default, which LLaVA's sampled answers rest on
SEED_BYTES = 8


class GumbelNoise(LogitsProcessor):
    """Adds Gumbel noise, so that the largest score is a draw from softmax(scores); each row has its own generator."""

    def __init__(self, seeds: Sequence[int]):
        self.generators = [torch.Generator().manual_seed(seed) for seed in seeds]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> Any:
        """scores [B, V] -> the same with noise. The noise is drawn on the CPU: equal on every device."""
        draws = [torch.empty(scores.shape[1]).exponential_(generator=g) for g in self.generators]
        return scores - torch.stack(draws).log().to(scores.device)


def seed_of(seed: int, *key: Any) -> int:
    """A generator's seed for one question of a run."""
    return int.from_bytes(hashlib.sha256(repr((seed, *key)).encode()).digest()[:SEED_BYTES], "big", signed=True)


def check_decoding(args: argparse.Namespace) -> None:
    """Raises UserError for decoding flags that are none or do not go together."""
    for flag, value in (("--num_beams", args.num_beams), ("--max_new_tokens", args.max_new_tokens)):
        if value < 1:
            raise UserError(f"{flag} must be 1 or more, got {value}")
    if args.top_p is not None and not 0 < args.top_p <= 1:
        raise UserError(f"--top_p must be above 0 and at most 1, got {args.top_p}")
    if not 0 <= args.temperature < math.inf:
        raise UserError(f"--temperature must be 0 (greedy) or more, got {args.temperature}")
    if args.temperature > 0 and args.num_beams > 1:
        raise UserError(
            f"--temperature {args.temperature} with --num_beams {args.num_beams}: beams do not sample; "
            "give --temperature 0 or --num_beams 1"
        )


def decoding_of(args: argparse.Namespace, keys: Sequence[Any]) -> dict[str, Any]:
    """`generate`'s arguments for --temperature, --top_p, --num_beams, --seed; keys: what names each row's question."""
    plan: dict[str, Any] = {"do_sample": False, "num_beams": args.num_beams}
    if args.temperature > 0:
        steps = [TemperatureLogitsWarper(float(args.temperature)), TopKLogitsWarper(TOP_K)]
        if args.top_p is not None:
            steps.append(TopPLogitsWarper(args.top_p))
        noise = GumbelNoise([seed_of(args.seed, key) for key in keys])
        plan["logits_processor"] = LogitsProcessorList([*steps, noise])
    return plan
