"""Decoding without a cache (`generate(use_cache=False)`): each step is a prefill of prompt and answer so far."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch


class Continuation:
    """Remembers what the first step kept, for the steps after it.

    With a cache the tokens are selected once, for the prompt. A selection anew at every step would take the answer's
    words as text pivots and keep other tokens. A forward counts as the next step when it is one token longer than the
    last one and its first embeddings, the prompt's, are bit for bit the same. Not under autograd: that is training.
    """

    def __init__(self) -> None:
        self._inputs: torch.Tensor | None = None  # this forward's embeddings [B, S, D]
        self._prompt: torch.Tensor | None = None
        self._kept: list[torch.Tensor] = []
        self._length = 0

    def enter(self, decoder: Any, kwargs: dict[str, Any]) -> None:
        """Look at the decoder's arguments of a forward that begins."""
        use_cache = kwargs.get("use_cache")
        use_cache = getattr(decoder.config, "use_cache", True) if use_cache is None else use_cache
        uncached = not use_cache and kwargs.get("past_key_values") is None and not torch.is_grad_enabled()
        self._inputs = kwargs.get("inputs_embeds") if uncached else None
        if self._inputs is None:
            self._prompt = None

    def recall(self, spans: np.ndarray) -> list[torch.Tensor] | None:
        """What the first step kept, when this forward (spans [B, S]) is a later step of the same answer."""
        if self._inputs is None or self._prompt is None or spans.shape[1] != self._length + 1:
            return None
        rows, start = self._prompt.shape[:2]
        if len(spans) != rows or spans[:, start:].any() or not torch.equal(self._inputs[:, :start], self._prompt):
            return None
        self._length += 1
        return self._kept

    def remember(self, kept: list[torch.Tensor]) -> None:
        """This forward selected `kept` anew: it is a first step."""
        if self._inputs is not None:
            self._prompt, self._kept, self._length = self._inputs, kept, self._inputs.shape[1]
