"""One answer, timed: the first token (vision tower and prefill) apart from those that follow (decoding)."""

from __future__ import annotations

import contextlib
import inspect
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, GenerationMixin, StoppingCriteria, StoppingCriteriaList
from transformers.cache_utils import Cache

import dart
from dart.cli.loading import Prompt
from dart.utils import UserError, one_line

GREEDY = {"do_sample": False, "num_beams": 1, "temperature": None, "top_p": None, "top_k": None}
UNFINISHED = "\N{REPLACEMENT CHARACTER}"  # what a tokenizer decodes the first bytes of a character to
# `generate` takes its cache under the name that it passes on; transformers 5.24 renamed it.
GIVEN = inspect.signature(GenerationMixin.prepare_inputs_for_generation).parameters
CACHE = "cache" if "cache" in GIVEN else "past_key_values"


@dataclass(frozen=True)
class Answer:
    """ids: the new tokens; prefill_s: seconds to the first of them, decode_s: for all the others.

    cache_bytes, cache_tokens: of the KV cache when the prefill is done; the tokens layer by layer. kept: the kept
    visual tokens' numbers, 0 = the prompt's first visual token (all of them without DART). report: DART's, or None.
    """

    ids: list[int]
    prefill_s: float
    decode_s: float
    cache_bytes: int
    cache_tokens: list[int]
    visual: int
    kept: list[int]
    report: dart.PruneReport | None

    @property
    def decode_ms_per_token(self) -> float | None:
        """None for an answer of one token."""
        return 1000 * self.decode_s / (len(self.ids) - 1) if len(self.ids) > 1 else None


class _FirstToken(StoppingCriteria):
    """Stops nothing: notes the time and the size of the cache when the first token is there."""

    def __init__(self, cache: Cache, device: torch.device):
        self.cache, self.device = cache, device
        self.at: float | None = None
        self.bytes, self.tokens = 0, [0]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> Any:
        if self.at is None:
            self.at = now(self.device)
            self.bytes, self.tokens = cache_size(self.cache)
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def now(device: torch.device) -> float:
    """Seconds; what was sent to the device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def cache_size(cache: Any) -> tuple[int, list[int]]:
    """(bytes of all key and value tensors, tokens of each layer that has keys)."""
    layers = [layer for layer in cache.layers if isinstance(getattr(layer, "keys", None), torch.Tensor)]
    tensors = [tensor for layer in layers for tensor in (layer.keys, layer.values)]
    return sum(t.numel() * t.element_size() for t in tensors), [layer.keys.shape[-2] for layer in layers]


class Stream(StoppingCriteria):
    """Tells the text of an answer as it grows, and ends it when `stopped` says so.

    skip: tokens of the prompt in what `generate` returns; tokenizer: decodes, in this thread alone.
    """

    def __init__(self, tell: Callable[[str], None], stopped: Callable[[], bool], skip: int, tokenizer: Any):
        self.tell, self.stopped, self.skip, self.tokenizer = tell, stopped, skip, tokenizer
        self.told = ""

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> Any:
        self.grow(input_ids[0, self.skip :].tolist(), last=False)
        return torch.full((len(input_ids),), self.stopped(), dtype=torch.bool, device=input_ids.device)

    def grow(self, ids: list[int], last: bool) -> None:
        """Tell what is new in `ids`, the answer so far; half a character waits for its rest, unless it is the last."""
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        if last or not text.endswith(UNFINISHED):
            if piece := text[len(self.told) :]:
                self.tell(piece)
            self.told = text


def answer(
    model: Any, prompt: Prompt, config: dart.DartConfig | None, max_new_tokens: int, stream: Stream | None = None
) -> Answer:
    """Greedy decoding of one prompt, with DART where there is a config. stream: hears of every token."""
    device = model.device
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    first = _FirstToken(cache, device)
    handle = None if config is None else dart.prune(model, config)
    with handle or contextlib.nullcontext():
        began = now(device)
        ids = model.generate(
            **prompt.inputs,
            **{CACHE: cache},
            max_new_tokens=max_new_tokens,
            stopping_criteria=StoppingCriteriaList([first, *([stream] if stream else [])]),
            **GREEDY,
        )
        ended = now(device)
    report = None if handle is None else handle.last
    number = {position: k for k, position in enumerate(prompt.positions)}
    kept = list(number.values()) if report is None else [number[p] for p in report.kept[0].tolist()]
    at = ended if first.at is None else first.at
    return Answer(
        ids=ids[0, prompt.skip :].tolist(),
        prefill_s=at - began,
        decode_s=ended - at,
        cache_bytes=first.bytes,
        cache_tokens=first.tokens,
        visual=len(number),
        kept=kept,
        report=report,
    )


def ask_both(model: Any, prompt: Prompt, config: dart.DartConfig, warm_up: int, max_new_tokens: int) -> list[Answer]:
    """[without DART, with DART], each after its warm-up. Raises UserError: an unknown family, too little memory."""
    try:
        dart.prune(model, config).remove()
        answers = []
        for setting in (None, config):
            for _ in range(warm_up):
                answer(model, prompt, setting, 1)
            answers.append(answer(model, prompt, setting, max_new_tokens))
    except TypeError as error:  # a family that DART does not know
        raise UserError(one_line(error)) from error
    except torch.OutOfMemoryError as error:
        raise UserError(f"{model.device} has too little memory for this model and prompt: {one_line(error)}") from error
    return answers
