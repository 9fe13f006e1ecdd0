"""Signals of the vision tower: from what its attentions and the projector are given, by any attention kernel.

Of the layer whose states the projector is given, and of others that a strategy names, queries and keys are made once
more by the attention's own projections, norms and rotation, and from them the softmax rows of a few queries: of the CLS
token; in a tower without one (SigLIP, Qwen-VL) no token stands for the image, and the mean of `SAMPLED` evenly spaced
queries stands in, which is a deviation. The attention that a token receives is of all queries, `SAMPLED` at a time.
Tokens that do not see each other (of two images, views or windows) are apart in all this.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dart.engine.clip import Clip
from dart.engine.forward import PROMPT, Forward, current
from dart.engine.host import HostCopy, to_device
from dart.engine.layers import bound

if TYPE_CHECKING:
    from dart.engine.attach import PruneHandle

FEATURES, KEYS, ATTENTION, RECEIVED = "tower_features", "tower_keys", "tower_attention", "tower_received"
CLIP = "clip_similarity"
SIGNALS = frozenset({"grid", FEATURES, KEYS, ATTENTION, RECEIVED, CLIP})
SAMPLED = 64  # queries
CLS_NAMES = ("class_embedding", "cls_token")
TOWER_NAMES = frozenset({"vision_tower", "visual", "vision_model"})
LISTS = ("layers", "blocks", "layer")  # names of a tower's layers
ATTENTIONS = ("self_attn", "attn", "attention")  # names of a layer's attention
CAPTURE = "dart_tower"  # the attention function that hands out queries and keys


def _hand_out(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask: Any, **kwargs: Any
) -> Any:
    """An attention function that computes no output; `module.dart_take` receives what it would be computed from."""
    scale = kwargs.get("scaling")
    module.dart_take((query, key, query.shape[-1] ** -0.5 if scale is None else scale, attention_mask))
    return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None


ALL_ATTENTION_FUNCTIONS.register(CAPTURE, _hand_out)


class Tower:
    """What a strategy needs of the model's vision tower. needed: names of signals; empty for most strategies.

    Raises ValueError for a tower that cannot give them, with the reason.
    """

    def __init__(self, handle: PruneHandle):
        self.handle = handle
        self.needed = frozenset(name for name in handle.needs if name.partition("@")[0] in SIGNALS)
        self.refused = f"strategy {handle.config.strategy!r} cannot prune {type(handle.model).__name__}: "
        self.places: dict[str, int] = {}  # of signals, the tower's layer
        self.attentions: dict[int, Any] = {}  # by layer
        if self.needed - {"grid"}:
            try:
                self.tower, number, self.projector = handle.family.vision(handle.model)
            except ValueError as error:
                raise ValueError(self.refused + str(error)) from None
            self.has_cls = any(name.endswith(CLS_NAMES) for name, _ in self.tower.named_parameters())
            for name in sorted(self.needed - {"grid", FEATURES, CLIP}):
                self.places[name], attention = self._attention_of(number, name.partition("@")[2])
                self.attentions[self.places[name]] = attention
        if CLIP in self.needed:
            options = handle.config.options
            try:
                self.clip = Clip(options["clip"], options.get("tokenizer"), handle.model)
            except ValueError as error:
                raise ValueError(self.refused + str(error)) from None

    def _attention_of(self, number: int, depth: str) -> tuple[int, Any]:
        """(place, attention) of the layer that makes the hidden states `number` of the tower (0: its embeddings), or of
        the one at `depth`, if any."""
        lists = [module for name, module in self.tower.named_modules() if name.rpartition(".")[2] in LISTS]
        layers: Any = lists[0] if lists else []
        place = number - 1 if number > 0 else number + len(layers)
        if depth and not 0 < float(depth) <= 1:
            raise ValueError(f"{self.refused}a depth of {depth} is no part of a vision tower, which is in (0, 1]")
        if depth:
            place = max(round(float(depth) * len(layers)), 1) - 1
        layer = layers[place] if 0 <= place < len(layers) else None
        attention: Any = next((found for name in ATTENTIONS if (found := getattr(layer, name, None)) is not None), None)
        work = None if attention is None else inspect.unwrap(type(attention).forward).__code__
        if work is None or "ALL_ATTENTION_FUNCTIONS" not in work.co_names:
            raise ValueError(
                f"{self.refused}layer {place} of its vision tower, {type(self.tower).__name__}, has no attention that "
                "transformers' attention functions compute"
            )
        return place, attention

    def attach(self, hook: Callable[[Any], None]) -> None:
        """Put the hooks on that the needed signals take."""
        if not self.needed - {"grid"}:
            return
        hook(self.tower.register_forward_pre_hook(partial(self._keep, "tower"), with_kwargs=True))
        hook(self.projector.register_forward_pre_hook(partial(self._keep, FEATURES), with_kwargs=True))
        for place, attention in self.attentions.items():
            hook(attention.register_forward_pre_hook(partial(self._keep, str(place)), with_kwargs=True))

    @torch.compiler.disable
    def _keep(self, name: str, module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        """Into the forward that runs, or into the `generate` that encodes its images before any forward."""
        forward, prompt = current(self.handle), PROMPT.get()
        if forward is None and prompt is None:
            return
        kept = forward.tower if forward is not None else prompt.tower  # type: ignore[union-attr]
        given: Any = bound(module, args, kwargs)
        if name == FEATURES:
            given = next(value for value in given.values() if isinstance(value, torch.Tensor)).detach()
        elif name == "tower":  # sizes; not the pixels, which need not be kept
            given = {k: v for k, v in given.items() if not isinstance(v, torch.Tensor) or not v.is_floating_point()}
        kept.setdefault(name, []).append(given)

    def __call__(self, name: str, forward: Forward, device: torch.device) -> torch.Tensor:
        """The signal [B, S, ...] of all tokens of a forward, 0 for text. Raises ValueError with the reason."""
        handle, spans = self.handle, forward.visual_spans()
        if name == "grid":
            grid = handle.family.grid(handle.model, forward.inputs, torch.from_numpy(spans[:: forward.repeats]))
            if grid is None:
                raise ValueError(f"{self.refused}where its visual tokens lie is not known")
            return grid.repeat_interleave(forward.repeats, 0).to(device)
        if name == CLIP:
            return self._clip(forward, spans, self(FEATURES, forward, device))
        captured = forward.tower
        if not captured and forward.prompt is not None:
            captured = forward.prompt.tower
        if (runs := len(captured.get(FEATURES, ()))) != 1:
            raise ValueError(
                f"{self.refused}the vision tower ran {runs} times in this forward, and its signals can be had when it "
                "runs once, for all images of the batch"
            )
        once = {key: value[0] for key, value in captured.items()}
        values = self._signal(name, once).to(device)
        beams, rows, places, index = self._tokens(spans, forward, once)
        chosen = to_device(index, device)
        taken = values[chosen.clamp_min(0)] * (chosen >= 0).view(*chosen.shape, *[1] * (values.ndim - 1))
        full = values.new_zeros(len(spans) // beams, spans.shape[1], *values.shape[1:])
        full[to_device(rows, device), to_device(places, device)] = taken.float().mean(1).to(values.dtype)
        return full.repeat_interleave(beams, 0)

    def _clip(self, forward: Forward, spans: np.ndarray, features: torch.Tensor) -> torch.Tensor:
        """[B, S] for features [B, S, E]."""
        ids, valid = self._ids(forward), forward.valid_tokens(spans)
        similarity = torch.zeros_like(features[..., 0], dtype=torch.float)
        for row, span in enumerate(spans):
            visual = np.flatnonzero(span)
            if not visual.size:
                continue
            text = np.flatnonzero(valid[row])
            question = forward.question(row, text[text > visual[-1]])
            own = ids[row * len(ids) // len(spans)]  # for all beams
            if len(own) < len(span):  # a placeholder is an image, and a negative id: LLaVA's own classes
                own = own[np.flatnonzero(own < 0)[-1] + 1 :][question - visual[-1] - 1]
            else:
                own = own[-len(span) :][question]
            places = to_device(visual, features.device)
            try:
                similarity[row, places] = self.clip(features[row, places], own.tolist())
            except ValueError as error:
                raise ValueError(self.refused + str(error)) from None
        return similarity

    def _ids(self, forward: Forward) -> np.ndarray:
        """int [B, n]: the prompt's ids, as the model was given them."""
        if forward.ids is not None:
            return forward.ids.numpy()
        if forward.prompt is not None and forward.prompt.ids is not None:
            return HostCopy(forward.prompt.ids).numpy()
        raise ValueError(
            f"{self.refused}CLIP needs the question as token ids, and the model is given embeddings alone: leave "
            "option clip out"
        )

    @torch.no_grad()
    def _signal(self, name: str, captured: dict[str, Any]) -> torch.Tensor:
        """[patches, ...], of all patches in the order in which the projector is given them."""
        features = captured[FEATURES]
        shape = features.shape[:-1]
        if name == FEATURES:
            return features.flatten(0, -2)
        parts = self._projected(self.places[name], captured)
        kind, begin = name.partition("@")[0], int(self.has_cls)
        count = sum(key.shape[0] * (key.shape[2] - begin) for _, key, _ in parts)
        if count != shape.numel():
            views = shape[0] if len(shape) > 1 else 1
            raise ValueError(
                f"{self.refused}its projector is given {shape.numel() // views} tokens per view and its vision tower "
                f"has {count // views} patches"
            )
        if kind == KEYS:
            return torch.cat([key[:, :, begin:].transpose(1, 2).flatten(0, 1) for _, key, _ in parts])
        rows = [self._attention(*part, everyone=kind == RECEIVED)[:, begin:].flatten() for part in parts]
        return torch.cat(rows)

    def _projected(self, place: int, captured: dict[str, Any]) -> list[tuple[torch.Tensor, torch.Tensor, float]]:
        """(queries, keys, scale) [V, heads, T, d] of each group of tokens that see each other, in a layer."""
        found: list[tuple] = []
        attention = self.attentions[place]
        clone = copy.copy(attention)
        clone.config = copy.copy(attention.config)
        clone.config._attn_implementation, clone.dart_take = CAPTURE, found.append
        type(attention).forward(clone, **captured[str(place)])
        if any(mask is not None for *_, mask in found):
            raise ValueError(f"{self.refused}the attention of its vision tower has a mask")
        return [
            (query, key.repeat_interleave(query.shape[1] // key.shape[1], 1), scale) for query, key, scale, _ in found
        ]

    def _attention(self, query: torch.Tensor, key: torch.Tensor, scale: float, everyone: bool) -> torch.Tensor:
        """float32 [V, T]: mean over heads of the attention from CLS, from sampled queries without it, or from all."""
        length = query.shape[2]
        count = length if everyone else 1 if self.has_cls else min(SAMPLED, length)
        rows = torch.arange(count, device=query.device) * length // count
        total = torch.zeros(len(key), key.shape[2], device=key.device)
        for part in rows.split(SAMPLED):
            scores = query.index_select(2, part).float() @ key.float().transpose(-1, -2) * scale
            total += scores.softmax(-1).sum(2).mean(1)
        return total / count

    def _tokens(
        self, spans: np.ndarray, forward: Forward, captured: dict[str, Any]
    ) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
        """(how often `generate` repeats each row, whose images it has encoded once before; rows [n], places [n] of the
        visual tokens; int [n, m]: the patches that each is made of, -1 for none)."""
        shape = captured[FEATURES].shape[:-1]
        try:
            made = self.handle.family.patches(self.handle.model, forward.inputs, captured["tower"], shape)
        except ValueError as error:
            raise ValueError(self.refused + str(error)) from None
        if made is not None:
            beams = self._beams(int((spans > 0).sum()), len(made), len(spans))
            rows, places = np.nonzero(spans[::beams])
            if len(rows) != len(made):
                raise ValueError(f"{self.refused}the prompt has {len(rows)} visual tokens, its tower made {len(made)}")
            return beams, rows, places, made.numpy()
        views, patches = shape if len(shape) > 1 else (1, shape[0])
        beams = self._beams(sum(len(np.unique(row[row > 0])) for row in spans), views, len(spans))
        spans = spans[::beams]
        rows, places = np.nonzero(spans)
        order = np.lexsort((places, spans[rows, places], rows))
        rows, places = rows[order], places[order]
        _, sizes = np.unique(np.stack([rows, spans[rows, places]]), axis=1, return_counts=True)
        if len(sizes) != views or (sizes != patches).any():
            raise ValueError(
                f"{self.refused}its tower saw {views} views of {patches} patches, the prompt has {len(sizes)} with "
                f"{', '.join(map(str, sorted(set(sizes.tolist()))))} tokens: they do not match one to one"
            )
        return beams, rows, places, np.arange(len(rows))[:, None]

    @staticmethod
    def _beams(there: int, made: int, rows: int) -> int:
        """How often each of `rows` rows is repeated, if `there` is of what the tower made `made` of."""
        beams = there // max(made, 1)
        return beams if beams > 1 and rows % beams == 0 else 1


def reads_tower(needs: Iterable[str]) -> bool:
    """Is one of these signals taken while the tower runs?"""
    return any(name.partition("@")[0] in SIGNALS - {"grid"} for name in needs)


class SharedVision:
    """A model's vision tower that computes once what it is given several times, within `with shared.on():`.

    For prompts of the same images, one after the other. A strategy that `reads_tower` must see it run. Outputs are kept
    as long as this object is; a model whose tower has a name that is not known here shares nothing.
    """

    def __init__(self, model: nn.Module):
        named = [(name, module) for name, module in model.named_modules() if name.rpartition(".")[2] in TOWER_NAMES]
        inner = {id(part) for _, module in named for part in list(module.modules())[1:]}
        self.towers = [module for _, module in named if id(module) not in inner]
        self._known: list[tuple[nn.Module, Any, Any]] = []

    @contextmanager
    def on(self) -> Iterator[None]:
        """While the `with` block runs, the tower answers what it has seen before from memory."""
        own = [vars(tower).get("forward") for tower in self.towers]  # accelerate puts one there
        for tower in self.towers:
            tower.forward = partial(self._forward, tower, tower.forward)
        try:
            yield
        finally:
            for tower, forward in zip(self.towers, own, strict=True):
                del tower.forward
                if forward is not None:
                    tower.forward = forward

    def _forward(self, tower: nn.Module, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        for known, given, output in self._known:
            if known is tower and _same(given, (args, kwargs)):
                return copy.deepcopy(output)  # models of the Qwen line write into it
        output = forward(*args, **kwargs)
        self._known.append((tower, (args, kwargs), copy.deepcopy(output)))
        return output


def _same(first: Any, second: Any) -> bool:
    """Are two nests of arguments equal, tensors by their values?"""
    if type(first) is not type(second):
        return False
    if isinstance(first, torch.Tensor):
        return first.dtype == second.dtype and first.device == second.device and torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(_same(first[name], second[name]) for name in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(_same, first, second))
    return bool(first == second)
