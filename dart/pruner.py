"""Attaches token pruning to a model's decoder layers with forward pre-hooks, and takes it off again.

Layer K of a prefill with visual tokens selects and gathers; the later layers are given the gathered positions and
masks. What a cache was pruned to is remembered beside the cache (weakly), so decoding and later turns get masks that
fit its shorter layers. Where the pictures are (and the padding) is read by the host once a prefill, from copies that
begin with the forward.
"""

from __future__ import annotations

import inspect
import logging
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache
from transformers.cache_utils import Cache

from dart.cache_states import CacheStates, Kept, with_free_slots
from dart.config import DartConfig
from dart.continuation import Continuation
from dart.embeddings import prune_embeddings
from dart.families import adapter_for
from dart.masks import gather_inputs, gather_mask
from dart.report import PruneReport
from dart.selection import select_rows
from dart.static_cache import fit, forget_open, is_static, remember_open, step_mask, visible_to_last
from dart.transfer import HostCopy

logger = logging.getLogger(__name__)
ATTACHED = "_dart_handle"
POSITIONS = ("position_embeddings", "position_ids")  # a decoder layer's arguments


@dataclass
class _Step:
    """One forward's gathered inputs, shared by the layers >= K. rows: [B, n], None when this forward drops nothing."""

    rows: torch.Tensor | None
    replace: dict[str, Any]


class PruneHandle:
    """Pruning attached to one model: `remove()` it, or use it in a `with`. `last`: the last prefill's report."""

    def __init__(self, model: nn.Module, config: DartConfig):
        self.model, self.adapter = model, adapter_for(model)
        self.config = self._no_earlier_than(self.adapter.earliest_layer(model), config)
        self.decoder: Any = self.adapter.decoder(model)
        if getattr(model.config, "DART_config", None) is None:
            getattr(model, "dart_handle", None)  # a switch that was turned off since the last forward detaches here
        if getattr(self.decoder, ATTACHED, None) is not None:
            raise ValueError("this model is pruned already: remove the first handle before calling dart.prune again")
        self.last: PruneReport | None = None
        self.states = CacheStates()
        self._steps = Continuation()
        self.spans: torch.Tensor | None = None
        self._spans_read: HostCopy | None = None
        self._valid: torch.Tensor | None = None
        self._valid_read: HostCopy | None = None
        self._past_read: HostCopy | int = 0
        self._scratch: Cache | None = None
        self._step: _Step | None = None
        self.positions_given = False  # by the caller, for this forward
        self.ragged = False  # do the rows of this forward keep different numbers of tokens?
        self._hooks: list[Any] = []
        self._attach()

    def __enter__(self) -> PruneHandle:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Take every hook off. Calling it twice does nothing."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()
        if getattr(self.decoder, ATTACHED, None) is self:
            delattr(self.decoder, ATTACHED)
        self.states = CacheStates()
        self._steps = Continuation()
        self.spans = self._valid = self._scratch = self._step = None
        self._spans_read = self._valid_read = None

    def _no_earlier_than(self, layer: int, config: DartConfig) -> DartConfig:
        if config.layer >= layer:
            return config
        logger.warning(
            "%s adds visual features up to layer %d: layer=%d is raised to it",
            type(self.model).__name__,
            layer,
            config.layer,
        )
        return replace(config, layer=layer)

    @property
    def attached(self) -> bool:
        return bool(self._hooks)

    def _attach(self) -> None:
        layers, layer = self.decoder.layers, self.config.layer
        if layer >= len(layers):
            logger.warning("layer=%d but the model has %d decoder layers: nothing will be pruned", layer, len(layers))
            return
        setattr(self.decoder, ATTACHED, self)
        on = {"with_kwargs": True}
        if not self.adapter.aligns_labels:
            self._hooks.append(self.model.register_forward_pre_hook(self._refuse_labels, **on))
        self._hooks.append(self.adapter.entry(self.model).register_forward_pre_hook(self._enter, **on))
        self._hooks.append(self.decoder.register_forward_pre_hook(self._enter_decoder, **on))
        if layer == 0:
            self._hooks += [each.register_forward_pre_hook(self._hide_gaps, **on) for each in layers]
            return
        self._hooks.append(layers[layer - 1].register_forward_pre_hook(self._before_keys, **on))
        self._hooks.append(layers[layer].register_forward_pre_hook(self._prune_layer, **on))
        self._hooks += [later.register_forward_pre_hook(self._shorten_layer, **on) for later in layers[layer + 1 :]]

    # Hooks, in the order in which a forward meets them.

    def _refuse_labels(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        if kwargs.get("labels") is None:
            return
        spans = self.adapter.visual_span_ids(self.model, kwargs)
        if spans is not None and bool(spans.any()):
            raise ValueError(
                "labels were given, but DART leaves fewer logits than there are labels; compute the loss from the "
                "logits of the kept tokens (handle.last.kept), or remove the handle for training"
            )

    def _enter(self, module: nn.Module, args: tuple, kwargs: dict) -> None:
        arguments = kwargs
        if args:
            arguments = dict(inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments)
            arguments |= arguments.pop("kwargs", {})
        self.spans = self.adapter.visual_span_ids(self.model, arguments)
        self._spans_read = None if self.spans is None else HostCopy(self.spans)
        self.positions_given = arguments.get("position_ids") is not None
        self._step = self._valid = self._valid_read = self._scratch = None
        self.ragged = False

    def _enter_decoder(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        mask = kwargs.get("attention_mask")
        if isinstance(mask, torch.Tensor):
            self._valid = mask.bool() if mask.ndim == 2 else visible_to_last(mask)
            self._valid_read = None if self.spans is None else HostCopy(self._valid)
        cache: Any = kwargs.get("past_key_values")
        if self.spans is not None and is_static(cache):
            stored = cache.get_seq_length(0)
            self._past_read = HostCopy(stored) if isinstance(stored, torch.Tensor) else int(stored)
        self._steps.enter(module, kwargs)
        if self.config.layer == 0:
            return args, prune_embeddings(self, kwargs)
        return None

    def _before_keys(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """Without a cache, layer K-1 gets one for this call, from which its keys are read."""
        if self.spans is None or kwargs.get("past_key_values") is not None:
            return None
        self._scratch = DynamicCache()
        return args, {**kwargs, "past_key_values": self._scratch}

    def _prune_layer(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        hidden = args[0] if args else kwargs["hidden_states"]
        cache = kwargs.get("past_key_values")
        length = hidden.shape[1]
        if self.spans is None and length == 1 and is_static(cache):
            mask = step_mask(cache, self.config.layer, kwargs.get("attention_mask"), hidden.shape[0])
            if mask is not None:
                self._step = _Step(None, {"attention_mask": mask})
                return args, {**kwargs, "attention_mask": mask}
        past = self._past(cache, length)
        rows = None
        if self.spans is not None and length > 1:
            keys = self._keys(cache, past, length)
            rows = self.choose_rows(hidden, keys, past)
        self.spans = self._scratch = None
        state = self.states.of(cache, past, hidden.shape[0])
        if past == 0 and is_static(cache):
            forget_open(cache, self.config.layer)
            fit(cache, self.config.layer, 0 if rows is None else length - rows.shape[1])
        if rows is None and state is None:
            return None
        after = self.states.advance(cache, state, rows, past, hidden, self.ragged)
        changed = {"attention_mask": self._shorter_mask(rows, after, cache, past, hidden, kwargs)}
        if rows is not None:
            hidden, inputs = self._gather(rows, hidden, kwargs)
            changed |= inputs
        self._step = _Step(rows, changed)
        kwargs = {**kwargs, **changed}
        if args:
            return (hidden, *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": hidden}

    def _shorten_layer(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        return None if self._step is None else (args, {**kwargs, **self._step.replace})

    def _hide_gaps(self, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        """At layer 0 the decoder itself is given positions with gaps; see `_gather`."""
        return (args, {**kwargs, "position_ids": None}) if self._flash and "position_ids" in kwargs else None

    # The work behind them.

    def _past(self, cache: Cache | None, length: int) -> int:
        """Tokens in the cache before this forward's `length`."""
        if cache is None:
            return 0
        if self.spans is not None and is_static(cache):  # what it holds by now is known to the device alone
            return self._past_read if isinstance(self._past_read, int) else int(self._past_read.numpy())
        return int(cache.get_seq_length(0)) - length

    @property
    def _flash(self) -> bool:
        return "flash" in self.decoder.config._attn_implementation

    def _keys(self, cache: Cache | None, past: int, length: int) -> torch.Tensor:
        """[B, heads, S, head_dim] of layer K-1 for this forward's tokens."""
        source: Any = cache if cache is not None else self._scratch
        return source.layers[self.config.layer - 1].keys[:, :, past : past + length]

    def choose_rows(self, hidden: torch.Tensor, keys: torch.Tensor, past: int) -> torch.Tensor | None:
        """LongTensor [B, n] of what stays of `hidden` [B, S, D] (before the final norm), left-padded; None: all."""
        length = hidden.shape[1]
        spans = self._spans_read.numpy()[:, -length:] if self._spans_read is not None else np.zeros((1, length))
        if not spans.any():
            return None
        known, left = self._steps.recall(spans)
        if not known:
            valid = None if self._valid_read is None else self._valid_read.numpy()[:, past : past + length]
            left = select_rows(hidden, self.decoder.norm, keys, spans, valid, self.config)
            self._steps.remember(left)
        visual = spans > 0
        widths = [length] * len(spans) if left is None else left.widths
        self.ragged = len(set(widths)) > 1
        before = [int(n) for n in visual.sum(1)]
        after = [n - length + width for n, width in zip(before, widths, strict=True)]
        rows = None if left is None else left.rows
        layers = len(self.decoder.layers)
        self.last = PruneReport(before, after, length, max(widths), self.config.layer, layers, rows, visual)
        return rows

    def _shorter_mask(
        self,
        rows: torch.Tensor | None,
        after: Kept,
        cache: Cache | None,
        past: int,
        hidden: torch.Tensor,
        kwargs: dict,
    ) -> Any:
        mask, layer = kwargs.get("attention_mask"), self.config.layer
        if mask is None and not after.padded and not is_static(cache):
            return None
        size, length = hidden.shape[:2]
        columns = after.columns
        filled = columns.shape[1]
        columns = with_free_slots(columns, cache, layer)
        if mask is None and after.padded and self._flash:
            return (columns >= 0).long()
        queries = rows if rows is not None else torch.arange(length, device=hidden.device).expand(size, -1)
        mask = gather_mask(mask, queries, columns, past, after.padded, self._valid)
        if is_static(cache):
            remember_open(cache, layer, mask, columns, filled)
        return mask

    def _gather(self, rows: torch.Tensor, hidden: torch.Tensor, kwargs: dict) -> tuple[torch.Tensor, dict[str, Any]]:
        """The kept rows of the hidden states, and of what tells the later layers their positions."""
        angles, positions = (kwargs.get(name) for name in POSITIONS)
        # transformers reads gaps in position_ids as several packed sequences; flash attention needs none of them.
        hidden, *gathered = gather_inputs(rows, hidden, angles, None if self._flash else positions)
        return hidden, {name: each for name, each in zip(POSITIONS, gathered, strict=True) if name in kwargs}


def prune(model: nn.Module, config: DartConfig | None = None) -> PruneHandle:
    """Attach DART to `model` and return the handle (also a context manager).

    model: any supported family (see `dart.families`); config: defaults to `DartConfig()`, 128 tokens after layer 2.
    Nothing changes but what the decoder layers from `config.layer` on are given, from a forward with visual tokens on.
    The logits of such a prefill have one row per token that is left. Raises TypeError for an unknown model or config,
    ValueError when the model is pruned already.
    """
    if config is not None and not isinstance(config, DartConfig):
        raise TypeError(f"config must be a dart.DartConfig, got {type(config).__name__}")
    return PruneHandle(model, DartConfig() if config is None else config)
