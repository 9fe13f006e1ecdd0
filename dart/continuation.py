"""Decoding without a cache (`generate(use_cache=False)`): each step is a prefill of prompt and answer so far."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from dart.selection import Left


class Continuation:
    """Remembers what the first step kept, for the steps after it.

    With a cache the tokens are selected once, for the prompt. A selection anew at every step would take the answer's
    words as text pivots and keep other tokens. A forward counts as the next step when it is one token longer than the
    last one and its first embeddings, the prompt's, are bit for bit the same. Not under autograd: that is training.
    """

    def __init__(self) -> None:
        self._inputs: torch.Tensor | None = None  # this forward's embeddings [B, S, D]
        self._prompt: torch.Tensor | None = None
        self._left: Left | None = None
        self._length = 0

    def enter(self, decoder: Any, kwargs: dict[str, Any]) -> None:
        """Look at the decoder's arguments of a forward that begins."""
        use_cache = kwargs.get("use_cache")
        use_cache = getattr(decoder.config, "use_cache", True) if use_cache is None else use_cache
        uncached = not use_cache and kwargs.get("past_key_values") is None and not torch.is_grad_enabled()
        self._inputs = kwargs.get("inputs_embeds") if uncached else None
        if self._inputs is None:
            self._prompt = None

    def recall(self, spans: np.ndarray) -> tuple[bool, Left | None]:
        """Is this forward (spans [B, S]) a later step of the same answer? And what stays of it then."""
        if self._inputs is None or self._prompt is None or spans.shape[1] != self._length + 1:
            return False, None
        rows, start = self._prompt.shape[:2]
        if len(spans) != rows or spans[:, start:].any() or not torch.equal(self._inputs[:, :start], self._prompt):
            return False, None
        if self._left is not None:
            new = self._left.rows.new_full((rows, 1), self._length)
            self._left = Left(torch.cat([self._left.rows, new], 1), [width + 1 for width in self._left.widths])
        self._length += 1
        return True, self._left

    def remember(self, left: Left | None) -> None:
        """This forward selected anew what is `left`: it is a first step."""
        if self._inputs is not None:
            self._prompt, self._left, self._length = self._inputs, left, self._inputs.shape[1]
