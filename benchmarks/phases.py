"""The time of one answer, phase by phase, and the memory it takes."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from transformers.cache_utils import Cache

from benchmarks.engines import Engine, answer_positions
from benchmarks.shapes import Workload
from dart.families import family_of

MARKS = ("start", "decoder", "layer", "selected", "end")
PHASES = ("vision", "before", "selection", "after")
STDERR = 2  # its file descriptor
WAITS = ("cudaStreamSynchronize", "cudaDeviceSynchronize", "cudaEventSynchronize", "cudaMemcpy")


class Clock:
    """Moments in seconds: events of the device where there is one, so that no phase waits for it; else the host's."""

    def __init__(self, device: torch.device):
        self._cuda = device.type == "cuda"
        self._moments: dict[str, Any] = {}

    def mark(self, name: str) -> None:
        if self._cuda:
            self._moments[name] = torch.cuda.Event(enable_timing=True)
            self._moments[name].record()
        else:
            self._moments[name] = time.perf_counter()

    def between(self, first: str, second: str) -> float:
        """Seconds from one mark to another. The device is waited for."""
        start, end = self._moments[first], self._moments[second]
        if not self._cuda:
            return end - start
        end.synchronize()
        return start.elapsed_time(end) / 1000


class Marks:
    """Marks the clock where a prefill enters the decoder, and before and after the hooks of layer K."""

    def __init__(self, model: Any, layer: int, clock: Clock):
        decoder = family_of(model).decoder(model)
        target = decoder.layers[layer]
        self._on = True
        places = ((decoder, "decoder", True), (target, "layer", True), (target, "selected", False))
        self._hooks = [
            module.register_forward_pre_hook(self._marker(clock, name), prepend=first) for module, name, first in places
        ]

    def _marker(self, clock: Clock, name: str) -> Callable[..., None]:
        return lambda *_: clock.mark(name) if self._on else None

    def pause(self) -> None:
        """Decoding is timed as a whole."""
        self._on = False

    def remove(self) -> None:
        for hook in self._hooks:
            hook.remove()


def run_once(work: Workload, layer: int, answer_tokens: int, engine: Engine) -> tuple[dict[str, float], Cache]:
    """Answer greedily with exactly `answer_tokens` tokens; seconds of every phase, and the cache.

    vision: the tower, the projector and merging; before, selection, after: the decoder up to layer K, what happens in
    front of layer K, and from there to the first token's logits; prefill: those three; ttft: time to first token;
    decode: each further token; total: the whole answer. Attach DART before: its hooks are to lie between the marks.
    """
    cache = engine.cache(work, answer_tokens)
    clock = Clock(work.model.device)
    marks = Marks(work.model, layer, clock)
    try:
        with torch.inference_mode():
            _synchronize(work.model.device)
            clock.mark("start")
            output = work.model(**work.inputs, past_key_values=cache, use_cache=True, logits_to_keep=1)
            token = output.logits[:, -1:].argmax(-1)
            clock.mark("end")
            marks.pause()
            for positions in answer_positions(work, answer_tokens - 1):
                token = engine.decode(token, cache, positions)
            clock.mark("answered")
    finally:
        marks.remove()
    seconds = {name: clock.between(MARKS[k], MARKS[k + 1]) for k, name in enumerate(PHASES)}
    seconds["prefill"] = clock.between("decoder", "end")
    seconds["ttft"] = clock.between("start", "end")
    seconds["decode"] = clock.between("end", "answered") / max(1, answer_tokens - 1)
    seconds["total"] = clock.between("start", "answered")
    return seconds, cache


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cache_bytes(cache: Cache) -> int:
    """Bytes of the storage that the cache's tensors occupy."""
    layers: list[Any] = list(cache.layers)
    tensors = [each for layer in layers for each in (layer.keys, layer.values) if each is not None]
    return sum(each.untyped_storage().nbytes() for each in tensors)


@contextmanager
def _quiet() -> Iterator[None]:
    """Drops what native code writes to stderr: torch's profiler announces itself there, between the table's lines."""
    sys.stderr.flush()
    kept = os.dup(STDERR)
    with open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), STDERR)
    try:
        yield
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)


def host_waits(function: Callable[[], object], device: torch.device) -> int | None:
    """How often the host waits for a CUDA device in `function()`, as torch's profiler sees it; None for other devices.

    The profiler's own wait at its end may be among them: compare with another function.
    """
    if device.type != "cuda":
        return None
    torch.cuda.synchronize(device)
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as recorded:
        function()
    return sum(event.count for event in recorded.key_averages() if event.key in WAITS)


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """The most bytes of tensors alive at once in `function()`, beyond those alive before it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    recorded = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
    with _quiet():
        recorded.start()
    try:
        function()
    finally:
        with _quiet():
            recorded.stop()
    results: Any = recorded.profiler
    events = [each for each in results.kineto_results.events() if each.name() == "[memory]"]
    alive = peak = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        alive += event.nbytes()
        peak = max(peak, alive)
    return peak
