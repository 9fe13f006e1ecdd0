"""How tokens are decoded: which cache, and what runs a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import Cache

from benchmarks.shapes import Workload
from dart.engine.compiled import compile_step

ENGINES = {
    "eager": "a cache that grows",
    "static": "a static cache",
    "compiled": "a static cache, a step as one compiled graph",
    "graphs": "the same, replayed as CUDA graphs",
}


def answer_positions(work: Workload, answer_tokens: int) -> list[torch.Tensor]:
    """The positions of an answer's tokens, known beforehand; after a prefill, which sets M-RoPE's offset.

    Told them, no model reads its cache's length on the host.
    """
    counted = torch.arange(work.length, work.length + answer_tokens, device=work.model.device)
    offset = getattr(work.model.model, "rope_deltas", None)
    rows = counted.expand(work.batch, -1)
    positions = rows if offset is None else (rows + offset).expand(3, -1, -1)
    return [positions[..., k : k + 1] for k in range(answer_tokens)]


@dataclass(frozen=True)
class Engine:
    """name: of ENGINES; step: the model's forward, compiled or not."""

    name: str
    step: Callable[..., Any]

    @classmethod
    def of(cls, name: str, model: Any) -> Engine:
        """Raises ValueError for CUDA graphs without CUDA."""
        if name == "graphs" and model.device.type != "cuda":
            raise ValueError(f"the engine graphs replays CUDA graphs, the model is on {model.device}: use compiled")
        if name in ("eager", "static"):
            return cls(name, model)
        return cls(name, compile_step(model, **({"mode": "reduce-overhead"} if name == "graphs" else {})))

    def cache(self, work: Workload, answer_tokens: int) -> Cache:
        """An empty one for a prompt and its answer."""
        config = work.model.config.get_text_config(decoder=True)
        if self.name == "eager":
            return DynamicCache(config=config)
        return StaticCache(config=config, max_cache_len=work.length + answer_tokens)

    def decode(self, token: torch.Tensor, cache: Cache, positions: torch.Tensor) -> torch.Tensor:
        """LongTensor [B, 1] at `positions` ([B, 1], or [3, B, 1] for M-RoPE) -> the next one."""
        if self.name == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        given = {"past_key_values": cache, "position_ids": positions, "use_cache": True, "logits_to_keep": 1}
        output = self.step(input_ids=token, **given)
        return output.logits[:, -1:].argmax(-1)  # a copy: a replayed graph writes over its logits
