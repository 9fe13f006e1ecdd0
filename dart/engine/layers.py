"""The one place that knows how transformers calls a decoder layer and its attention.

Names are read from the signatures of the loaded model's own modules, so that a release which renames an argument works
and one which drops it is refused by `prune()`. Tested with transformers 5.17, the locked release and the newest.
"""

from __future__ import annotations

import copy
import inspect
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from dart import kernels

TESTED = "5.17.0 to 5.24.0"
CACHE_NAMES = ("cache", "past_key_values", "past_key_value")
POSITION_NAMES = ("position_ids",)
CAPTURE = "dart_rows"  # the attention function that hands out rows of the attention
# Before transformers 5.20 or so a checkpointed layer runs its hooks once more in the backward pass.
HOOKS_RUN_AGAIN = "__call__" in vars(GradientCheckpointingLayer)


def cache_argument(module: nn.Module) -> str | None:
    """The name under which `module.forward` takes the KV cache; None where it takes none."""
    parameters = inspect.signature(module.forward).parameters
    for name in CACHE_NAMES:
        if name in parameters:
            return name
    found = [name for name, parameter in parameters.items() if _is_cache(name, str(parameter.annotation))]
    return found[0] if len(found) == 1 else None


def _is_cache(name: str, annotation: str) -> bool:
    words = annotation.replace("|", " ").replace("[", " ").replace("]", " ").replace("'", " ").split()
    typed = any(word.rpartition(".")[2].removesuffix(">") in ("Cache", "DynamicCache") for word in words)
    return typed or (("cache" in name or name.startswith("past")) and name not in ("use_cache", "cache_position"))


def cache_of(arguments: dict[str, Any]) -> Any:
    """The cache in a forward's keyword arguments, under whichever name."""
    return next((arguments[name] for name in CACHE_NAMES if arguments.get(name) is not None), None)


def bound(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> dict[str, Any]:
    """A forward's arguments by name, those of `**kwargs` included."""
    if not args:
        return kwargs
    arguments = dict(inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments)
    return {**arguments, **arguments.pop("kwargs", {})}


def attention_of(layer: nn.Module) -> nn.Module | None:
    """The layer's softmax attention; None for layers of another kind (linear attention, convolutions, Mamba)."""
    for name, child in layer.named_children():
        if hasattr(child, "k_proj") and cache_argument(child) is not None and "linear" not in name:
            return child
    named = [c for n, c in layer.named_children() if n in ("self_attn", "attention", "attn", "self_attention")]
    return next((child for child in named if cache_argument(child) is not None), None)


@dataclass(frozen=True)
class Layer:
    """One decoder layer as the engine sees it.

    takes: the names of its arguments, in order; cache: that of its cache. attention: its softmax attention, None where
    it has none. slot: the number of the cache's layer that it writes to. shares: it reads what the layer that writes
    to `slot` has seen, and writes nothing (Gemma 3n and 4). recurrent: it takes its mask as [B, S] over the tokens of
    this forward.
    """

    takes: tuple[str, ...]
    cache: str
    attention: nn.Module | None
    slot: int
    shares: bool = False

    @property
    def recurrent(self) -> bool:
        """Is it of a kind without softmax attention (linear attention, convolutions, Mamba)?"""
        return self.attention is None


def read_layers(decoder: Any) -> list[Layer]:
    """What `dart` must know of every layer. Raises ValueError for a release of transformers that it cannot read."""
    read: list[Layer] = []
    writers: dict[Any, int] = {}  # the last layer of each type that writes keys
    for number, module in enumerate(decoder.layers):
        attention = attention_of(module)
        name = cache_argument(module)
        taken = tuple(inspect.signature(module.forward).parameters)
        missing = [] if name else ["a KV cache"]
        missing += [] if "attention_mask" in taken else ["attention_mask"]
        if missing:
            raise ValueError(
                f"{type(module).__name__} of transformers {transformers.__version__} takes no "
                f"{' and no '.join(missing)}: dart cannot prune it (tested with transformers {TESTED})"
            )
        slot = getattr(attention, "layer_idx", None)
        slot = number if slot is None else int(slot)
        kind = getattr(attention, "layer_type", None)
        if getattr(attention, "is_kv_shared_layer", False):
            read.append(Layer(taken, str(name), attention, writers[kind], True))
            continue
        writers[kind] = slot
        read.append(Layer(taken, str(name), attention, slot))
    return read


def gather_tokens(tensor: torch.Tensor, rows: torch.Tensor, dim: int) -> torch.Tensor:
    """Pick `rows` (LongTensor [B, n], padding slots clamped to 0) of a tensor whose token axis is `dim` (negative).

    The axis before it is the batch (size B or 1): [B, S, D] with dim=-2, [3, B, S] with dim=-1, and so on.
    """
    index = rows.clamp_min(0).to(tensor.device)
    size, count = index.shape
    shape = list(tensor.shape)
    shape[dim - 1] = size
    tensor = tensor.expand(shape)
    shape[dim] = count
    tail = (1,) * (-1 - dim)
    return tensor.gather(tensor.ndim + dim, index.view(size, count, *tail).expand(shape))


def gather_inputs(
    rows: torch.Tensor, hidden: torch.Tensor, angles: Any, positions: torch.Tensor | None, mode: str = "torch"
) -> tuple[torch.Tensor, Any, torch.Tensor | None]:
    """`rows` of what a layer is given: hidden states [B, S, D], cos and sin [..., B or 1, S, h], or None, and
    positions [..., B or 1, S], or None. mode: of `dart.kernels`."""
    gathered = kernels.gather(rows, hidden, angles, positions, mode)
    if gathered is not None:
        return gathered
    angles = None if angles is None else tuple(gather_tokens(each, rows, -2) for each in angles)
    positions = None if positions is None else gather_tokens(positions, rows, -1)
    return gather_tokens(hidden, rows, -2), angles, positions


def gather_argument(name: str, value: Any, rows: torch.Tensor, length: int, flash: bool) -> Any:
    """What a layer is given under `name`, for the tokens `rows` [B, n] of the `length` it would have been given.

    Angles come as (cos, sin) or as one tensor, [..., B or 1, S, h]; positions as [..., B or 1, S]; whatever else has
    the tokens on its second axis is [B or 1, S, ...]; of other lengths, it stays as it is. Flash attention is given no
    positions: it would read their gaps as several packed sequences.
    """
    if name in POSITION_NAMES:
        return None if flash or value is None else gather_tokens(value, rows, -1)
    if isinstance(value, tuple) and value and all(isinstance(each, torch.Tensor) for each in value):
        return tuple(gather_tokens(each, rows, -2) for each in value) if value[0].shape[-2] == length else value
    if not isinstance(value, torch.Tensor) or value.ndim < 2 or value.shape[1] != length:
        return value
    return gather_tokens(value, rows, 1 - value.ndim) if value.ndim > 2 else gather_tokens(value, rows, -1)


class Recorder:
    """Stands in for a cache in one layer's attention and keeps the keys and values of this forward.

    keys, values: [B, heads, S, head_dim], keys after RoPE; None until the attention has run.
    """

    def __init__(self, cache: Any):
        self._cache = cache
        self.keys: torch.Tensor | None = None
        self.values: torch.Tensor | None = None

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        """Keep keys and values, [B, heads, S, head_dim] each, and hand them back."""
        self.keys, self.values = keys.detach(), values.detach()
        return (keys, values) if self._cache is None else self._cache.update(keys, values, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cache, name)


class _Given:
    """A cache that answers every update with keys and values known beforehand."""

    def __init__(self, keys: torch.Tensor | None, values: torch.Tensor | None):
        self._known = keys, values

    def update(self, keys: torch.Tensor, values: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        known, theirs = self._known
        return (keys, values) if known is None else (known, theirs)

    def __getattr__(self, name: str) -> Any:
        raise ValueError(f"attention rows cannot be had of this model: its attention reads `{name}` of its cache")


def _rows(module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **kwargs: Any) -> Any:
    """An attention function that computes softmax rows and no output; `module.dart_take` receives them."""
    chosen = query if module.dart_queries is None else query.index_select(2, module.dart_queries)
    key = key.repeat_interleave(query.shape[1] // key.shape[1], 1).float()
    scores = chosen.float() @ key.transpose(-1, -2) * kwargs.get("scaling", query.shape[-1] ** -0.5)
    if (cap := kwargs.get("softcap")) is not None:
        scores = torch.tanh(scores / cap) * cap
    seen, positions, window = module.dart_seen, module.dart_positions, kwargs.get("sliding_window")
    if window is not None:
        seen = seen & (positions[module.dart_asked][:, None] - positions < window)
    module.dart_take(scores.masked_fill(~seen, torch.finfo(scores.dtype).min).softmax(-1))
    return query.new_zeros(query.shape[0], query.shape[2], query.shape[1], value.shape[-1]), None


ALL_ATTENTION_FUNCTIONS.register(CAPTURE, _rows)


class _Ones(nn.Module):
    """A projection that makes ones."""

    def __init__(self, width: int):
        super().__init__()
        self.width = width

    def forward(self, states: torch.Tensor) -> torch.Tensor:
        return states.new_ones(*states.shape[:-1], self.width)


def _ones_instead(attention: nn.Module) -> dict[str, nn.Module | None]:
    """The attention's modules with ones for its projections and no norms behind them. Raises ValueError."""
    modules = dict(attention._modules)
    for name in ("q_proj", "k_proj", "v_proj"):
        width = getattr(modules.get(name), "out_features", None)
        if width is None:
            raise ValueError(f"what the rotation alone prefers cannot be had of {type(attention).__name__}: no {name}")
        modules[name] = _Ones(width)
    return modules | {name: nn.Identity() for name in ("q_norm", "k_norm") if name in modules}


@torch.no_grad()
def attention_rows(
    attention: Any,
    given: dict[str, Any],
    recorded: Recorder,
    queries: torch.Tensor,
    seen: torch.Tensor,
    positions: torch.Tensor,
    rope: bool = True,
    ones: bool = False,
) -> torch.Tensor:
    """float32 [1, heads, R, S]: softmax rows of the chosen queries (LongTensor [R]) of one sample, by any kernel.

    given: the keyword arguments that `attention` is called with, of one sample; recorded: its keys and values, None
    before it has run. seen: bool [R, S], without the layer's window, which counts in positions (LongTensor [S], of what
    was there before any token was dropped). rope: False compares queries and keys before their rotation; ones: True
    replaces both by ones before it. The attention's own projections, norms and rotation are used, for the chosen
    queries alone where the keys are known and rotated.
    """
    found: list[torch.Tensor] = []
    clone = copy.copy(attention)
    clone.config = copy.copy(attention.config)
    clone.config._attn_implementation = CAPTURE
    clone.dart_take, clone.dart_seen, clone.dart_positions, clone.dart_asked = found.append, seen, positions, queries
    name = str(cache_argument(attention))
    length = given["hidden_states"].shape[1]
    if ones:
        clone._modules = _ones_instead(attention)
    if rope and not ones and recorded.keys is not None:
        clone.dart_queries = None
        rows = queries[None]
        given = {key: gather_argument(key, value, rows, length, False) for key, value in given.items()}
        given[name] = _Given(recorded.keys, recorded.values)
    else:
        clone.dart_queries = queries
        given = {**given, name: _Given(None, None)}
    if not rope:
        angles = given.get("position_embeddings")
        if not isinstance(angles, tuple):
            raise ValueError(f"{type(attention).__name__} rotates by itself: attention rows without RoPE cannot be had")
        given["position_embeddings"] = (torch.ones_like(angles[0]), torch.zeros_like(angles[1]))
    given["attention_mask"] = None
    type(attention).forward(clone, **given)
    return found[0]


def checkpoints(layer: Any) -> bool:
    """Does this layer run under gradient checkpointing now?"""
    return bool(getattr(layer, "gradient_checkpointing", False)) and layer.training and torch.is_grad_enabled()


def forget_compiled(model: Any) -> bool:
    """Drop code that was compiled before hooks were put on or taken off; was there any?"""
    compiled = getattr(model, "_compiled_call_impl", None) is not None
    forward = vars(model).get("forward")
    compiled = compiled or hasattr(forward, "_torchdynamo_orig_callable")
    if compiled:
        torch.compiler.reset()
    return compiled
