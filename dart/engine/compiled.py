"""`torch.compile` for a model that may be pruned: its layers in the prefill, its whole forward in decoding steps.

The selection of a prefill reads where the pictures are on the host, so it stays between the compiled layers: nothing in
them breaks a graph. Both work with and without DART attached, and attaching or removing it afterwards is noticed.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from dart.families import family_of

ISOLATED = "isolate_recompiles" in inspect.signature(torch.compile).parameters
_WHOLE: dict[str, Any] = {"fullgraph": True} | ({"isolate_recompiles": True} if ISOLATED else {})


class CompiledLayers:
    """Decoder layers whose forward is compiled: `remove()` it, or use it in a `with`."""

    def __init__(self, layers: list[nn.Module]):
        self._layers = layers

    def __enter__(self) -> CompiledLayers:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def remove(self) -> None:
        """The layers' own forward again. Calling it twice does nothing."""
        for layer in self._layers:
            layer.__dict__.pop("forward", None)


def compile_layers(model: nn.Module, **options: Any) -> CompiledLayers:
    """Compile every decoder layer: one graph a layer, for any number of tokens, that is for every prompt.

    options: of `torch.compile`, such as backend or mode. Raises TypeError for an unknown model or option, ValueError
    for a torch whose layers would share one limit of compilations (without `isolate_recompiles`).
    """
    if not ISOLATED:
        raise ValueError(
            f"compile_layers needs torch.compile(isolate_recompiles=...), torch {torch.__version__} has none"
        )
    layers = list(family_of(model).decoder(model).layers)
    for layer in layers:
        compiled: Any = torch.compile(layer.forward, **{**_WHOLE, "dynamic": True, **options})
        layer.__dict__["forward"] = compiled
    return CompiledLayers(layers)


def compile_step(model: nn.Module, **options: Any) -> Callable[..., Any]:
    """A compiled `model(...)` for decoding one token a row on a `StaticCache`, which the plain model has prefilled.

    Give it `position_ids`, as `generate` does: without them some models read the cache's length on the host. One graph
    for all samples and steps; another one for each batch size and cache length, so give caches one length for all
    prompts. `mode="reduce-overhead"` replays CUDA graphs: clone a step's output before the next one.
    """
    forward: Any = model.forward
    return torch.compile(forward, **{**_WHOLE, **options})
