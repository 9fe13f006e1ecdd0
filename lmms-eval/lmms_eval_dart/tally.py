"""How many visual tokens a run went through, before and after pruning."""

from __future__ import annotations

from typing import Any

import dart


class Tally:
    """Counts every prefill that `handle` reports about `model`."""

    def __init__(self, model: Any, handle: dart.PruneHandle):
        self.handle, self.samples, self.before, self.after, self.mean = handle, 0, 0, 0, 0.0
        self._seen: dart.PruneReport | None = None
        self._hook = model.register_forward_hook(self._count)

    def _count(self, *_: Any) -> None:
        report = self.handle.last
        if report is None or report is self._seen:
            return
        self._seen = report
        self.samples += len(report.visual_before)
        self.before += sum(report.visual_before)
        self.after += sum(report.visual_after)
        self.mean += sum(report.mean_visual_tokens)

    def remove(self) -> None:
        """Count no more."""
        self._hook.remove()

    def summary(self) -> str:
        """One line: the strategy and a sample's tokens, as means over the samples so far."""
        config, n = self.handle.config, self.samples
        if n == 0:
            return f"DART ({config.strategy}): no sample had visual tokens"
        return (
            f"DART ({config.strategy}): {self.before / n:.1f} -> {self.after / n:.1f} visual tokens per sample "
            f"from layer {config.layer}, {self.mean / n:.1f} as a mean over the layers; {n} samples"
        )
