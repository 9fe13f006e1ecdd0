"""Signals of the vision tower, from the outputs of modules that run anyway: no attention is computed a second time.

Of the layer whose states the projector is given: all keys, and the query of the CLS token. A tower without one (SigLIP)
has no token that stands for the image: the mean of `SAMPLED` evenly spaced queries stands in, which is a deviation.
The softmax rows are made of these alone, by whatever kernel the tower itself runs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from dart.engine.forward import PROMPT, Forward, current
from dart.engine.host import to_device

if TYPE_CHECKING:
    from dart.engine.attach import PruneHandle

SIGNALS = frozenset({"grid", "tower_features", "tower_keys", "tower_attention"})
SAMPLED = 64
CLS_NAMES = ("class_embedding", "cls_token")


class Tower:
    """What a strategy needs of the model's vision tower. needed: names of signals; empty for most strategies.

    Raises ValueError for a tower that cannot give them, with the reason.
    """

    def __init__(self, handle: PruneHandle):
        self.handle = handle
        self.needed = handle.needs & SIGNALS
        self.refused = f"strategy {handle.config.strategy!r} cannot prune {type(handle.model).__name__}: "
        if self.needed - {"grid"}:
            try:
                tower, number, self.projector = handle.family.vision(handle.model)
            except ValueError as error:
                raise ValueError(self.refused + str(error)) from None
            self.attention = self._attention_of(tower, number)
            self.has_cls = any(name.endswith(CLS_NAMES) for name, _ in tower.named_parameters())

    def _attention_of(self, tower: nn.Module, number: int) -> Any:
        """The attention of the layer that makes the hidden states `number` of `tower` (0: its embeddings)."""
        found = [module for name, module in tower.named_modules() if name.rpartition(".")[2] == "layers"]
        place = number - 1 if number > 0 else number + len(found[0]) if found else -1  # type: ignore[arg-type]
        layer = found[0][place] if found and 0 <= place < len(found[0]) else None  # type: ignore[index, arg-type]
        attention: Any = getattr(layer, "self_attn", None)
        plain = all(isinstance(getattr(attention, name, None), nn.Linear) for name in ("q_proj", "k_proj"))
        if (
            not plain
            or hasattr(attention, "q_norm")
            or "position_embeddings" in inspect.signature(attention.forward).parameters
        ):
            raise ValueError(
                f"{self.refused}layer {place} of its {type(tower).__name__} has no attention with a `q_proj` and a "
                "`k_proj` that nothing else (norm, rotation) comes after"
            )
        return attention

    def attach(self, hook: Callable[[Any], None]) -> None:
        """Put the hooks on that the needed signals take."""
        if self.needed & {"tower_keys", "tower_attention"}:
            hook(self.attention.k_proj.register_forward_hook(partial(self._keep, "keys")))
        if "tower_attention" in self.needed:
            hook(self.attention.q_proj.register_forward_hook(partial(self._keep, "queries")))
        if self.needed - {"grid"}:
            hook(self.projector.register_forward_hook(partial(self._keep, "features")))

    @torch.compiler.disable
    def _keep(self, name: str, module: nn.Module, args: tuple, output: torch.Tensor) -> None:
        """Into the forward that runs, or into the `generate` that encodes its images before any forward."""
        forward, prompt = current(self.handle), PROMPT.get()
        if forward is None and prompt is None:
            return
        kept = forward.tower if forward is not None else prompt.tower  # type: ignore[union-attr]
        value = (args[0] if name == "features" else output).detach()
        kept.setdefault(name, []).append(value[:, self._queries(value)] if name == "queries" else value)

    def _queries(self, states: torch.Tensor) -> torch.Tensor:
        """LongTensor of the tokens of `states` [views, T, E] whose attention counts."""
        if self.has_cls:
            return torch.zeros(1, dtype=torch.long, device=states.device)
        count = min(SAMPLED, states.shape[1])
        return torch.arange(count, device=states.device) * states.shape[1] // count

    def __call__(self, name: str, forward: Forward, device: torch.device) -> torch.Tensor:
        """The signal [B, S, ...] of all tokens of a forward, 0 for text. Raises ValueError with the reason."""
        handle, spans = self.handle, forward.visual_spans()
        if name == "grid":
            grid = handle.family.grid(handle.model, forward.inputs, torch.from_numpy(spans[:: forward.repeats]))
            if grid is None:
                raise ValueError(f"{self.refused}where its visual tokens lie is not known")
            return grid.repeat_interleave(forward.repeats, 0).to(device)
        captured, beams = forward.tower, 1
        if not captured and forward.prompt is not None:
            captured = forward.prompt.tower
            beams = self._beams(spans, captured)
        if (runs := len(captured.get("features", ()))) != 1:
            raise ValueError(
                f"{self.refused}the vision tower ran {runs} times in this forward, and its signals can be had when it "
                "runs once, for all images of the batch"
            )
        values = self._signal(name, {key: value[0] for key, value in captured.items()}).to(device)
        rows, places = self._tokens(spans[::beams], *captured["features"][0].shape[:2])
        full = values.new_zeros(len(spans) // beams, spans.shape[1], *values.shape[2:])
        full[to_device(rows, device), to_device(places, device)] = values.flatten(0, 1)
        return full.repeat_interleave(beams, 0)

    @staticmethod
    def _beams(spans: np.ndarray, captured: dict[str, Any]) -> int:
        """How often `generate` repeats each row, whose images it has encoded once before."""
        views = sum(len(each) for each in captured.get("features", ()))
        beams = sum(len(np.unique(row[row > 0])) for row in spans) // max(views, 1)
        return beams if beams > 1 and len(spans) % beams == 0 else 1

    def _signal(self, name: str, captured: dict[str, torch.Tensor]) -> torch.Tensor:
        """[views, n, ...], of the patches that the projector was given."""
        features = captured["features"]
        if name == "tower_features":
            return features
        keys = captured["keys"].unflatten(-1, (self.attention.num_heads, -1))
        begin = int(self.has_cls)
        if keys.shape[:2] != (features.shape[0], features.shape[1] + begin):
            raise ValueError(
                f"{self.refused}its projector is given {features.shape[1]} tokens per view and its vision tower has "
                f"{keys.shape[1] - begin} patches"
            )
        if name == "tower_keys":
            return keys[:, begin:]
        queries = captured["queries"].unflatten(-1, (self.attention.num_heads, -1))
        scores = torch.einsum("vqhe,vkhe->vhqk", queries.float(), keys.float()) * keys.shape[-1] ** -0.5
        return scores.softmax(-1).mean((1, 2))[:, begin:]

    def _tokens(self, spans: np.ndarray, views: int, patches: int) -> tuple[np.ndarray, np.ndarray]:
        """(rows, places) of the visual tokens in order of views and patches: sample by sample, span by span."""
        rows, places = np.nonzero(spans)
        order = np.lexsort((places, spans[rows, places], rows))
        rows, places = rows[order], places[order]
        _, sizes = np.unique(np.stack([rows, spans[rows, places]]), axis=1, return_counts=True)
        if len(sizes) != views or (sizes != patches).any():
            raise ValueError(
                f"{self.refused}its tower saw {views} views of {patches} patches, the prompt has {len(sizes)} with "
                f"{', '.join(map(str, sorted(set(sizes.tolist()))))} tokens: they do not match one to one"
            )
        return rows, places
