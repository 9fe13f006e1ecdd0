"""What strategies may look at. Everything is made when it is asked for, from what the forward holds anyway.

| name | shape | what |
|---|---|---|
| `raw` | [S, D] | hidden states at this layer; before the LLM, the embeddings |
| `hidden` | [S, D] | the same after the model's final norm (before the LLM: `raw`) |
| `previous` | [S, D] | hidden states one layer earlier |
| `keys`, `values` | [H, S, d] | of the layer before, keys after RoPE (before the LLM: the embeddings, as one head) |
| `attention` | [R, S] | `attention_rows(queries, rope=True)`: mean over heads of softmax rows of the layer before; |
| | [H, R, S] | `attention_heads(queries)`: those of each head |
| | [R, S] | `rotation_rows(queries)`: those of queries and keys of ones, what the positions alone prefer |
| `next_attention` | [R, S] | `next_attention_rows(queries)`: those of this layer if nothing were dropped before it |
| `embeddings` | [S, D] | the LLM's inputs |
| `question` | [Q] | positions of the question: text after the last image, see `Family.question` |
| `grid` | [S, 4] | frame, row, column and tile of each visual token |
| `tower_features` | [S, E] | of each visual token, the vision tower's states before the projector |
| `tower_keys` | [S, h, e] | of each visual token, its keys in the tower's layer whose states are used, by head |
| `tower_attention` | [S] | attention that CLS pays each visual token there, mean of heads; without CLS, mean received |
| `tower_received` | [S] | attention that each visual token receives there, mean of heads and of all queries |
| `clip_similarity` | [S] | cosine of each visual token and the question in CLIP's space, see `dart.engine.clip` |

The attention in another layer of the tower: `tower_attention@0.25` is of the one at a quarter of its depth.
S: tokens of one sample; those of `grid` and the tower are 0 for text, the tower's for newlines between tiles, too. No
S x S or N x N matrix of attention is made.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch

from dart.engine.norms import norm_in_blocks

NAMES = (
    "raw",
    "hidden",
    "previous",
    "keys",
    "values",
    "attention",
    "next_attention",
    "embeddings",
    "question",
    "grid",
    "tower_features",
    "tower_keys",
    "tower_attention",
    "tower_received",
    "clip_similarity",
)
IN_ANY_LAYER = ("tower_attention", "tower_received")
Rows = Callable[..., torch.Tensor]  # (queries [R], rope, ones) -> [H, R, S], see `dart.engine.layers.attention_rows`


def is_signal(name: str) -> bool:
    """Is it a signal's name, or one of `IN_ANY_LAYER` with the layer's depth: `tower_attention@0.25`?"""
    name, layered, _ = name.partition("@")
    return name in (IN_ANY_LAYER if layered else NAMES)


@dataclass(frozen=True)
class Signals:
    """Of one sample, see the table above. norm: the final norm, None where `raw` needs none.

    given: signals that the engine collected; asking for one that the strategy (its name) did not name in `needs` is an
    error. memory: what the strategy remembers of a token group from one stage to the next, see `Tokens.memory`.
    """

    raw: torch.Tensor
    norm: Any
    given: dict[str, Any] = field(default_factory=dict)
    strategy: str = ""
    memory: dict[int, dict[str, Any]] = field(default_factory=dict)
    asked: dict[int, torch.Tensor] = field(default_factory=dict)  # `next_attention_rows` of the query at this position

    def __getattr__(self, name: str) -> torch.Tensor:
        if is_signal(name) and name in self.given:
            return self.given[name]
        if is_signal(name):
            raise ValueError(f"strategy {self.strategy!r} asked for the signal {name!r} without naming it in `needs`")
        raise AttributeError(name)

    @cached_property
    def hidden(self) -> torch.Tensor:
        """[S, D]."""
        return norm_in_blocks(self.norm, self.raw[None])[0]

    def normed(self, rows: slice | torch.Tensor) -> torch.Tensor:
        """Some rows of `hidden` [n, D], a LongTensor of positions or a stretch; the others are not made."""
        part = self.raw[rows] if isinstance(rows, slice) else self.raw.index_select(0, rows)
        return part if self.norm is None else norm_in_blocks(self.norm, part[None])[0]

    def attention_rows(self, queries: torch.Tensor, rope: bool = True) -> torch.Tensor:
        """float32 [R, S]: mean over heads of the softmax rows of `queries` (LongTensor [R] of positions).

        The softmax runs over all tokens of this forward that a query sees. rope: False compares queries and keys before
        their rotation, which takes the distance out of the scores.
        """
        rows: Rows = self.attention  # type: ignore[assignment]
        return rows(queries, rope).mean(0)

    def attention_heads(self, queries: torch.Tensor) -> torch.Tensor:
        """float32 [H, R, S]: the rows of every head."""
        rows: Rows = self.attention  # type: ignore[assignment]
        return rows(queries)

    def rotation_rows(self, queries: torch.Tensor) -> torch.Tensor:
        """float32 [R, S]: the rows that the layer's rotation and mask make of queries and keys of ones."""
        rows: Rows = self.attention  # type: ignore[assignment]
        return rows(queries, ones=True).mean(0)

    def next_attention_rows(self, queries: torch.Tensor, place: int | None = None) -> torch.Tensor:
        """The same of this layer, from its own norm and projections of `raw`, as if nothing were dropped before it.

        place: the position that `queries` holds, where it is one that the host knows: the projections of all tokens run
        once for a sample, however many token groups ask about it.
        """
        if place is not None and place in self.asked:
            return self.asked[place]
        rows: Rows = self.next_attention  # type: ignore[assignment]
        found = rows(queries).mean(0)
        if place is not None:
            self.asked[place] = found
        return found
