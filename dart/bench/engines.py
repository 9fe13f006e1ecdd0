"""How tokens are decoded: which cache, and what runs a step."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import Cache

from dart.bench.shapes import Workload
from dart.compiled import compile_step

ENGINES = {
    "eager": "a cache that grows",
    "static": "a static cache",
    "compiled": "a static cache, a step as one compiled graph",
    "graphs": "the same, replayed as CUDA graphs",
}


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

    def decode(self, token: torch.Tensor, cache: Cache) -> torch.Tensor:
        """LongTensor [B, 1] -> the next one."""
        if self.name == "graphs":
            torch.compiler.cudagraph_mark_step_begin()
        output = self.step(input_ids=token, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return output.logits[:, -1:].argmax(-1)  # a copy: a replayed graph writes over its logits
