"""One forward of a pruned model: what it was given, what its stages kept, and what each layer gets of it.

A `Forward` lives as long as the model's forward does, in a context variable: threads and async tasks have their own. A
layer that is computed again in the backward pass gets its `Forward` back from the arguments that were saved for it.
"""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from dart.engine.host import HostCopy, to_device
from dart.engine.layers import Layer, Recorder, attention_rows, cache_of, gather_argument, gather_inputs, gather_tokens
from dart.engine.layout import cache_layer, claim, fit, is_static, layout_after, layout_of, mask_offsets, stored_tokens
from dart.engine.masks import PADDING, gather_mask, gather_padding, visible_to_last
from dart.engine.selection import Kept, merge_states
from dart.engine.signals import Signals
from dart.report import PruneReport, StageReport
from dart.strategies.base import Batch

if TYPE_CHECKING:
    from dart.engine.attach import PruneHandle

GRIDS = ("image_grid_thw", "video_grid_thw", "image_sizes")
SAVED = "dart_forward"  # the keyword argument in which a checkpointed layer finds its forward again
CURRENT: ContextVar[Forward | None] = ContextVar("dart_forward", default=None)
FINISHED: ContextVar[Forward | None] = ContextVar("dart_finished", default=None)
PROMPT: ContextVar[Prompt | None] = ContextVar("dart_prompt", default=None)


@dataclass
class Prompt:
    """What a call of `generate` asks: tokens from `length` on are answers or drafts, and never pruned.

    chunked: the prompt comes in several forwards; ids: its input ids, for models whose `generate` merges images into
    embeddings before any forward; tower: what `dart.engine.tower` captured then; grids: the sizes of images and videos,
    which such a `generate` does not hand on. spans, kept: what the first
    forward without a cache decided, for the next ones, which are given the prompt and the answer so far.
    """

    length: int
    chunked: bool = False
    ids: torch.Tensor | None = None
    tower: dict[str, Any] = field(default_factory=dict)
    grids: dict[str, torch.Tensor] = field(default_factory=dict)
    spans: np.ndarray | None = None
    kept: dict[int, Kept] = field(default_factory=dict)


@contextmanager
def prompt_of(
    length: int, chunked: bool = False, ids: torch.Tensor | None = None, given: Mapping[str, Any] | None = None
) -> Iterator[Prompt]:
    """Forwards in here belong to one `generate` for a prompt of `length` tokens, images and cached ones counted, which
    is given the arguments `given`."""
    grids = {name: each for name, each in (given or {}).items() if name in GRIDS and each is not None}
    prompt = Prompt(length, chunked, ids, grids=grids)
    token = PROMPT.set(prompt)
    try:
        yield prompt
    finally:
        PROMPT.reset(token)


@dataclass(frozen=True)
class StageKept:
    """What stays after a stage. local: LongTensor [B, n], of the tokens that this stage was given; rows: of the
    forward's; `PADDING` for none; merges: what is added to kept states, see `dart.engine.selection.Kept`."""

    layer: int
    local: torch.Tensor
    rows: torch.Tensor
    widths: list[int]
    merges: Any = None

    @property
    def ragged(self) -> bool:
        """Do the samples keep different numbers of tokens?"""
        return len(set(self.widths)) > 1


class Forward:
    """State of one forward; see the module."""

    def __init__(self, handle: PruneHandle, owner: Any, outer: Forward | None):
        self.handle, self.owner, self.outer = handle, owner, outer
        self.prompt = PROMPT.get()
        self.spans: HostCopy | None = None
        self.valid: HostCopy | None = None
        self.ids: HostCopy | None = None  # of the first module, for strategies that ask for the question
        self.positions: HostCopy | None = None  # as given without a [B, S] mask
        self.labels: torch.Tensor | None = None
        self.learned: torch.Tensor | None = None  # the labels that the loss was taken over, one for each of the logits
        self.embeddings: torch.Tensor | None = None
        self.length = 0
        self.kept: list[StageKept] = []
        self.recorders: dict[int, Recorder] = {}
        self.given: dict[int, dict[str, Any]] = {}  # to attentions, by layer
        self.states: dict[int, torch.Tensor] = {}  # hidden states before layers, for strategies that compare them
        self.memory: dict[int, dict[int, dict[str, Any]]] = {}  # of strategies, by row and token group
        self.inputs: dict[str, Any] = {}  # of the module that knew the visual tokens
        self.repeats = 1  # rows of this forward for one row of these inputs
        self.tower: dict[str, Any] = {}  # see `dart.engine.tower`
        self.report: PruneReport | None = None
        self._width = 0  # input ids in a row
        self._past: HostCopy | int = 0
        self._offsets: dict[bool, Any] = {}
        self._seen: dict[int, tuple[torch.Tensor, bool]] = {}  # by the layers that write to each slot of the cache
        self._text_after = 0  # the fewest tokens that come after the last image of a sample
        self._decided = -1  # stages that have been looked at
        self._memo: dict[Any, tuple[Any, Any]] = {}

    # What the modules on the way to the decoder are given.

    def look(self, arguments: dict[str, Any]) -> None:
        """Find the visual tokens and the padding in a module's arguments, unless a module before had them."""
        ids = arguments.get("input_ids")
        if self.ids is None and ids is not None and ids.shape[1] > 1 and "question" in self.handle.needs:
            self.ids = HostCopy(ids)
        if self.spans is None:
            spans = self.handle.family.visual_span_ids(self.handle.model, arguments)
            if spans is not None:
                self.spans, self._width = HostCopy(spans), int(spans.shape[1])
                positions, mask = arguments.get("position_ids"), arguments.get("attention_mask")
                if isinstance(positions, torch.Tensor) and not (isinstance(mask, torch.Tensor) and mask.ndim == 2):
                    self.positions = HostCopy(positions)
                if self.handle.tower.needed:
                    self._remember(arguments, len(spans))
        mask = arguments.get("attention_mask")
        if self.valid is None and self.spans is not None:
            if isinstance(mask, dict):
                mask = next((each for each in mask.values() if isinstance(each, torch.Tensor)), None)
            if isinstance(mask, torch.Tensor) and mask.ndim in (2, 4):
                self.valid = HostCopy(mask.bool() if mask.ndim == 2 else visible_to_last(mask))

    def _remember(self, arguments: dict[str, Any], rows: int) -> None:
        """The module's arguments; with sizes that `generate` knew alone, whose rows it repeats for its beams."""
        self.inputs = arguments
        ids, prompt = arguments.get("input_ids"), self.prompt
        if prompt is None or prompt.ids is None or ids is None or ids.shape[1] != prompt.length:
            return
        if all(arguments.get(name) is None for name in GRIDS):
            self.repeats = max(rows // len(prompt.ids), 1)
            self.inputs = {**arguments, **prompt.grids, "input_ids": ids[:: self.repeats]}

    def enter_decoder(self, kwargs: dict[str, Any]) -> None:
        """Note what the text model is given (its arguments by name): cache, positions, length."""
        embeds, cache = kwargs.get("inputs_embeds"), cache_of(kwargs)
        given = embeds if embeds is not None else kwargs.get("input_ids")
        self.length = 0 if given is None else int(given.shape[1])
        self.embeddings = embeds
        if self.spans is not None and self._width < self.length:
            raise ValueError(
                f"the decoder is given {self.length} tokens for {self._width} input ids: with tokens put in front "
                "(prompt tuning) nobody can tell which are visual"
            )
        if cache is not None and (self.length > 1 or not is_static(cache)):
            stored = cache.get_seq_length()
            self._past = HostCopy(stored) if isinstance(stored, torch.Tensor) else int(stored)
        if self.spans is None and self.prompt is not None and self.length == self.prompt.length and not self._past:
            self.look({**kwargs, "input_ids": self.prompt.ids})
        self._offsets = {} if cache is None else mask_offsets(cache, self.length)

    @property
    def past(self) -> int:
        """Unpruned tokens before this forward's. In a static cache only the device knows: this may wait for it."""
        if isinstance(self._past, HostCopy):
            self._past = int(self._past.numpy())
        return self._past

    def has_visual(self) -> bool:
        """Are there visual tokens to prune? Read by the host."""
        return self.spans is not None and bool(self._prompt_spans(self.spans.numpy()).any())

    def _prompt_spans(self, spans: np.ndarray) -> np.ndarray:
        """The spans without what is no part of the prompt (drafts may hold placeholders)."""
        end = spans.shape[1] if self.prompt is None else max(self.prompt.length - self.past, 0)
        if end >= spans.shape[1]:
            return spans
        spans = spans.copy()
        spans[:, end:] = 0
        return spans

    # Selection.

    def wants(self, stage: int) -> bool:
        """Will this stage select in this forward?"""
        return self.spans is not None and self.length > 1 and self._decided < stage

    def visual_spans(self) -> np.ndarray:
        """int [B, S] of this forward's tokens: 0 = text, k = the k-th visual span of the prompt."""
        return self._prompt_spans(self.spans.numpy()[:, -self.length :])  # type: ignore[union-attr]

    def count_visual(self) -> None:
        """The report of a forward that drops nothing."""
        if self.wants(0) and (spans := self.visual_spans()).any():
            self._decided = 0
            self._report(spans, len(self.handle.layers), 0.0)

    def select(self, stage: int, layer: int, hidden: torch.Tensor, arguments: dict[str, Any]) -> None:
        """Decide what stays from decoder layer `layer` on; `hidden` [B, S', D] and `arguments` go into that layer."""
        if not self.wants(stage):
            return
        self._decided = stage
        spans = self.visual_spans()
        if not spans.any():
            return
        began = time.perf_counter()
        self._check_packed()
        self._text_after = int((spans[:, ::-1] > 0).argmax(1)[spans.any(1)].min())
        if self.prompt is not None and self.prompt.chunked and self.past + self.length < self.prompt.length:
            raise ValueError(
                "prefill_chunk_size splits a prompt with images: DART selects from the whole prompt. Leave it out, or "
                "remove the handle"
            )
        known = self._known(stage, spans)
        kept = known if known is not None else self._select(stage, layer, hidden, arguments, spans)
        if kept is not None and self.prompt is not None and known is None:
            self.prompt.kept[stage] = kept
        if kept is not None:
            local = kept.rows
            rows = local
            if self.kept:
                rows = gather_tokens(self.kept[-1].rows, local, -1).masked_fill(local < 0, PADDING)
            self.kept.append(StageKept(layer, local, rows, kept.widths, kept.merges))
        self._report(spans, layer, time.perf_counter() - began)

    def _check_packed(self) -> None:
        """Raises ValueError for rows that hold several samples, which would share a budget and one text."""
        steps = np.diff(self.positions.numpy(), axis=-1) if self.positions is not None else np.zeros((1, 0))
        # Positions of two or three axes fall together where a sample begins; within an image only some of them fall.
        if (steps < 0).all(tuple(range(steps.ndim - 2))).any():
            raise ValueError(
                "position_ids begin anew within a row, as of several samples packed into it: give each sample a row"
            )

    def _known(self, stage: int, spans: np.ndarray) -> Kept | None:
        """What the first forward of a `generate` without a cache kept, with the answer so far added."""
        prompt = self.prompt
        if prompt is None or self.past:
            return None
        end = prompt.length
        if stage == 0 and (prompt.spans is None or not np.array_equal(prompt.spans, spans[:, :end])):
            prompt.spans, prompt.kept = spans[:, :end].copy(), {}
        if stage not in prompt.kept or self.length <= end:
            return None
        kept = prompt.kept[stage]
        count = self.length - end
        begin = self.kept[-1].rows.shape[1] - count if self.kept else end
        added = torch.arange(begin, begin + count, device=kept.rows.device).expand(len(kept.rows), -1)
        return Kept(torch.cat([kept.rows, added], 1), [width + count for width in kept.widths], kept.merges)

    def _select(
        self, stage: int, layer: int, hidden: torch.Tensor, arguments: dict[str, Any], spans: np.ndarray
    ) -> Kept | None:
        selector = self.handle.selectors[stage]
        valid, stays = self.valid_tokens(spans), None
        sizes = [{int(k): int((row == k).sum()) for k in np.unique(row) if k} for row in spans]
        if self.kept:
            rows = HostCopy(self.kept[-1].rows).numpy()
            stays, places = rows >= 0, rows.clip(0)
            spans = np.where(stays, np.take_along_axis(spans, places, 1), 0)
            valid = stays & np.take_along_axis(valid, places, 1)
        recorded = self.recorders.pop(layer - 1, None)
        keys: Any = hidden[:, None] if recorded is None else recorded.keys
        if keys is None or (layer and recorded is None and self.handle.needs & {"keys", "values"}):
            raise ValueError(
                f"layer {layer - 1} gave its cache no keys: strategy {self.handle.config.strategy!r} needs them"
            )
        batch = selector.batch(hidden, self.handle.norm if layer else None, keys, spans, valid, sizes, stays)
        if not any(batch.groups):
            return None
        return selector.run(batch, self._signals(layer, batch, recorded, valid, arguments))

    def valid_tokens(self, spans: np.ndarray) -> np.ndarray:
        """bool [B, S]: what is neither padding nor an answer or a draft."""
        valid = np.ones(spans.shape, dtype=bool)
        if self.valid is not None:
            mask = self.valid.numpy()
            start = self.past if mask.shape[1] > self.length else 0
            valid &= mask[:, start : start + self.length]
        if self.prompt is not None:
            valid[:, max(self.prompt.length - self.past, 0) :] = False
        return valid

    def _signals(
        self, layer: int, batch: Batch, recorded: Recorder | None, valid: np.ndarray, arguments: dict[str, Any]
    ) -> list[Signals]:
        """Of every sample, what the strategy named in `needs`."""
        handle = self.handle
        needs, following = handle.needs, self._following(layer, batch.hidden, arguments)
        before = self.given.get(layer - 1, {})
        if "attention" in needs and (not before or recorded is None or recorded.keys is None):
            raise ValueError(
                f"strategy {handle.config.strategy!r} needs attention rows, which layer {layer - 1} cannot give"
            )
        given: list[dict[str, Any]] = [{} for _ in batch.hidden]
        values = batch.keys if recorded is None else recorded.values
        for row, own in enumerate(given):
            if needs & {"keys", "values"}:
                own["keys"], own["values"] = batch.keys[row], values[row]  # type: ignore[index]
            if "previous" in needs:
                own["previous"] = self._previous(layer)[row]
            if "embeddings" in needs:
                own["embeddings"] = self._embeddings()[row]
            if "question" in needs and batch.groups[row]:
                own["question"] = to_device(self.question(row, batch.groups[row][0].text), batch.hidden.device)
            if "attention" in needs:
                own["attention"] = self._attention(layer - 1, row, before, recorded or Recorder(None), valid[row])
            if following is not None:
                own["next_attention"] = self._attention(layer, row, following, Recorder(None), valid[row])
        for name in handle.tower.needed:
            signal = handle.tower(name, self, batch.hidden.device)
            signal = signal if not self.kept else gather_tokens(signal, self.kept[-1].rows, 1 - signal.ndim)
            for own, values in zip(given, signal, strict=True):
                own[name] = values
        return [
            Signals(states, batch.norm, own, handle.config.strategy, self.memory.setdefault(row, {}))
            for row, (states, own) in enumerate(zip(batch.hidden, given, strict=True))
        ]

    def _previous(self, layer: int) -> torch.Tensor:
        """[B, S', D], the states that went into the layer before `layer`, of the tokens that are left."""
        states, kept = self.states[layer - 1], self.kept[-1] if self.kept else None
        if kept is None or kept.layer < layer - 1:
            return states
        # That layer was a stage: the states were remembered before it dropped any.
        states = states if kept.merges is None else merge_states(states, kept.merges)
        return gather_tokens(states, kept.local, -2)

    def _following(self, layer: int, hidden: torch.Tensor, arguments: dict[str, Any]) -> dict[str, Any] | None:
        """What the attention of `layer` would be given if nothing were dropped before it; None: nobody asks."""
        if "next_attention" not in self.handle.needs:
            return None
        attention: Any = self.handle.layers[layer].attention
        with torch.no_grad():
            given = {"hidden_states": self.handle.decoder.layers[layer].input_layernorm(hidden)}
        for name, value in arguments.items():
            if name in inspect.signature(attention.forward).parameters and name not in given:
                left = self.kept and name != "attention_mask"
                given[name] = gather_argument(name, value, self.kept[-1].rows, self.length, False) if left else value
        return given

    def _embeddings(self) -> torch.Tensor:
        """[B, S', D], of the tokens that are left."""
        if self.embeddings is None:
            raise ValueError("the decoder was given no embeddings: the signal 'embeddings' cannot be had")
        return self.embeddings if not self.kept else gather_tokens(self.embeddings, self.kept[-1].rows, -2)

    def question(self, row: int, text: np.ndarray) -> np.ndarray:
        """Those positions of `text`, what comes after the last image of a sample, that ask the question.

        Without ids (embeddings alone were given; LLaVA's original classes, whose ids know no image's length): all.
        """
        ids = None if self.ids is None else self.ids.numpy()[row]
        if ids is None or len(ids) < self.length or not text.size:
            return text
        places = text if not self.kept else HostCopy(self.kept[-1].rows).numpy()[row, text]
        return text[self.handle.family.question(self.handle.model, ids[-self.length :][places])]

    def _attention(self, number: int, row: int, given: dict[str, Any], recorded: Recorder, valid: np.ndarray) -> Any:
        """Makes [H, R, S] of one sample at the layer `number`. recorded: empty where the layer has not run yet."""

        def sample(value: Any) -> Any:
            if isinstance(value, tuple):
                return tuple(sample(each) for each in value)
            batched = isinstance(value, torch.Tensor) and value.ndim > 1
            axis = max(value.ndim - 3, 0) if batched and value.ndim > 2 else 0
            if not batched or value.shape[axis] == 1:
                return value
            return value.narrow(axis, row, 1)

        own = {name: sample(value) for name, value in given.items() if name not in ("attention_mask", "position_ids")}
        positions = given.get("position_ids")
        if positions is not None:
            own["position_ids"] = positions if positions.shape[-2] == 1 else positions.narrow(-2, row, 1)
        one = Recorder(None)
        if recorded.keys is not None and recorded.values is not None:
            one.keys, one.values = recorded.keys[row : row + 1], recorded.values[row : row + 1]
        attention = self.handle.layers[number].attention

        def rows(queries: torch.Tensor, rope: bool = True, ones: bool = False) -> torch.Tensor:
            places = torch.arange(len(valid), device=queries.device)
            seen = (places <= queries[:, None]) & torch.from_numpy(valid).to(queries.device)
            positions = self.kept[-1].rows[row] if self.kept else places
            return attention_rows(attention, own, one, queries, seen, positions, rope, ones)[0]

        return rows

    def _report(self, spans: np.ndarray, layer: int, seconds: float) -> None:
        before = [int(n) for n in (spans > 0).sum(1)]
        stages = list(self.report.stages) if self.report is not None else []
        kept = self.kept[-1] if self.kept else None
        widths = [self.length] * len(spans) if kept is None else kept.widths
        after = [n - self.length + width for n, width in zip(before, widths, strict=True)]
        stages.append(StageReport(layer, after, seconds))
        rows = None if kept is None else kept.rows
        layers = len(self.handle.layers)
        self.report = PruneReport(
            before, after, self.length, max(widths), stages[0].layer, layers, rows, spans > 0, tuple(stages)
        )
        self.handle.last = self.report

    # What the layers get.

    def rows_at(self, number: int) -> tuple[int, StageKept | None]:
        """The last stage at or before layer `number`: (its place, what it kept)."""
        for place in range(len(self.kept) - 1, -1, -1):
            if self.kept[place].layer <= number:
                return place, self.kept[place]
        return -1, None

    def arguments(
        self, number: int, layer: Layer, hidden: torch.Tensor, others: dict[str, Any]
    ) -> tuple[torch.Tensor, dict[str, Any]] | None:
        """(hidden states, the other arguments by name) that the layer should be given; None: as they are."""
        cache = others.get(layer.cache)
        own = None if layer.recurrent or layer.shares else cache_layer(cache, layer.slot)
        place, kept = self.rows_at(number)
        if kept is None:
            if layer.shares and layer.slot not in self._seen or not layer.shares and layout_of(own) is None:
                if own is not None and self.length > 1 and self.past == 0:
                    fit(own, 0)
                return None
            columns, padded = self._seen[layer.slot] if layer.shares else self._columns(own, is_static(cache))
            self._seen[layer.slot] = columns, padded
            return hidden, {**others, "attention_mask": self._mask(place, layer, others, None, columns, padded)}
        if kept.layer == number:
            hidden = self._gather(place, kept, hidden, others)
        flash, rows = self.handle.flash, self._last_rows(kept, hidden)
        changed = {}
        for name, value in others.items():
            if name not in ("attention_mask", layer.cache):
                gather = partial(gather_argument, name, value, rows, self.length, flash)
                # What has a gradient is gathered anew: a checkpointed layer must save the same tensors both times.
                anew = isinstance(value, torch.Tensor) and value.requires_grad
                changed[name] = gather() if anew else self._once((place, name, id(value), rows.shape[1]), value, gather)
        changed[layer.cache] = cache
        mask = others.get("attention_mask")
        if layer.recurrent:
            changed["attention_mask"] = self._once(
                (place, "padding", id(mask)), mask, lambda: gather_padding(mask, kept.rows, kept.ragged)
            )
            return hidden, changed
        columns, padded = self._seen[layer.slot] if layer.shares else self._prune_cache(place, kept, cache, layer)
        self._seen[layer.slot] = columns, padded
        self._check_window(layer, columns)
        changed["attention_mask"] = self._mask(place, layer, others, rows, columns, padded)
        return hidden, changed

    def _gather(self, place: int, kept: StageKept, hidden: torch.Tensor, others: dict[str, Any]) -> torch.Tensor:
        """The hidden states of what stays; on a GPU that runs our kernels, angles and positions in the same launch."""
        if kept.merges is not None:
            hidden = merge_states(hidden, kept.merges)
        angles, positions = others.get("position_embeddings"), others.get("position_ids")
        if place or not isinstance(angles, tuple) or angles[0].shape[-2] != self.length:
            return gather_tokens(hidden, kept.local, -2)
        mode, count = self.handle.selectors[0].kernels, kept.local.shape[1]
        given = None if self.handle.flash else positions
        hidden, angles_left, positions_left = gather_inputs(kept.local, hidden, angles, given, mode)
        self._memo[place, "position_embeddings", id(angles), count] = (angles, angles_left)
        self._memo[place, "position_ids", id(positions), count] = (positions, positions_left)
        return hidden

    def _last_rows(self, kept: StageKept, hidden: torch.Tensor) -> torch.Tensor:
        """The rows that the layer is given: the last ones where the decoder goes on with those that make logits."""
        given, count = hidden.shape[1], kept.rows.shape[1]
        if given == count:
            return kept.rows
        if given > self._text_after:
            raise ValueError(
                f"{type(self.handle.decoder).__name__} computes its last layers for the last {given} tokens alone, and "
                f"only {self._text_after} come after the image: ask for fewer logits, or for all of them"
            )
        return kept.rows[:, count - given :]

    def _prune_cache(self, place: int, kept: StageKept, cache: Any, layer: Layer) -> tuple[torch.Tensor, bool]:
        """Write the layout into the layer's cache; (the positions that its attention sees, padded)."""
        positions = self._once(
            (place, "positions"), None, lambda: torch.where(kept.rows < 0, kept.rows, kept.rows + self.past)
        )
        own = claim(cache, layer.slot)
        if own is None:
            return positions, kept.ragged
        old = layout_of(own)
        if self.past == 0:
            fit(own, self.length - positions.shape[1])
        signature = (place, "layout", id(old), stored_tokens(own), type(own))
        layout, columns = self._once(
            signature, old, lambda: layout_after(own, positions, self.past, self.length, kept.ragged)
        )
        own.layout = layout
        return columns, layout.padded

    def _columns(self, own: Any, static: bool) -> tuple[torch.Tensor, bool]:
        """(the positions that the attention of an earlier pruned layer sees in this forward, padded)."""
        layout: Any = layout_of(own)
        used, stored = stored_tokens(own)
        if not static:
            used, stored = used + self.length, stored + self.length
        key = (id(layout), used, stored)
        return self._once(key, layout, lambda: layout.columns(used, stored)), layout.padded

    def _mask(
        self,
        place: int,
        layer: Layer,
        others: dict[str, Any],
        rows: torch.Tensor | None,
        columns: torch.Tensor,
        padded: bool,
    ) -> Any:
        mask, cache = others.get("attention_mask"), others.get(layer.cache)
        if mask is None and not padded:
            return None
        static = is_static(cache)
        sliding = cache is not None and bool(getattr(cache.layers[layer.slot], "is_sliding", False))
        offset = self._offsets.get(sliding, 0) if mask is not None else 0
        key = (place, "mask", id(mask), id(columns))
        length = self.length
        if isinstance(mask, torch.Tensor) and mask.ndim == 4 and mask.shape[2] != length:
            rows, length = None, mask.shape[2]  # cut to the last queries already
        flash = self.handle.flash
        past = self.past if mask is None else 0  # of a prepared mask, nothing needs counting
        return self._once(
            key,
            (mask, columns),
            lambda: gather_mask(mask, rows, columns, length, past, padded and not static, flash, offset),
        )

    def _check_window(self, layer: Layer, columns: torch.Tensor) -> None:
        window = getattr(layer.attention, "sliding_window", None)
        if self.handle.flash and isinstance(window, int) and self.past + self.length > window:
            raise ValueError(
                f"flash attention measures its window of {window} tokens over what is left, not over the prompt of "
                f"{self.past + self.length}: use attn_implementation='sdpa' to prune this model"
            )

    def _once(self, key: Any, source: Any, make: Any) -> Any:
        """`make()`, once in this forward for `key`; `source` is kept alive, since its id may be a part of the key."""
        if key not in self._memo:
            self._memo[key] = (source, make())
        return self._memo[key][1]


def current(handle: PruneHandle) -> Forward | None:
    """The forward of this handle's model that this thread is in."""
    forward = CURRENT.get()
    return forward if forward is not None and forward.handle is handle else None
