"""`DartConfig`: what to keep, where to prune, and in which order the pivots choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

PIVOT_ORDERS = ("norm", "original")
SCOPES = ("span", "joint")
BUDGET_KINDS = ("after-layer", "mean-over-layers", "pre-llm")
DEFAULT_KEEP = 128


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class DartConfig:
    """Settings of one pruning run.

    keep: visual tokens to keep per sample: an int >= 0, or a fraction in (0, 1). None: `reduction_ratio` decides; where
        neither is given, 128.
    layer: K; tokens are dropped between decoder layers K-1 and K (paper, section 3; default 2). 0 drops embeddings.
    image_pivots, text_pivots: how many pivots of each kind (largest L1 norm of the keys; paper, section 3; default 4).
    strategy: a name registered in `dart.strategies`; looked up by `dart.prune` and `dart.select`.
    pivot_order: "norm" (image pivots by falling norm, then text pivots by falling norm; computed in float32, equals go
        to the lower position) or "original" (the order of the research code's Python set, with its roundings, which
        published numbers rest on; one small host read a sample).
    scope: "span" shares the budget over a sample's images (LLaVA-NeXT: over every view of them, the overview and
        the tiles) in proportion to their tokens, "joint" pools them.
    exact: True: keep exactly `keep` tokens; False: as in the research code, each of P pivots takes `budget // P`
        tokens, and the image pivots come on top: 128 keeps 4 + 8 * 16 = 132, a ratio of 0.778 of 576 keeps 124.
        None, the default: False for `dart`, True for every other strategy.
    seed: for strategies that draw at random.
    reduction_ratio: the fraction to drop, in [0, 1], as the research code states it; instead of `keep`. 0 drops
        nothing, 1 keeps the image pivots alone.
    budget_kind: of what the budget is a number: "after-layer" (the tokens left after the last stage),
        "mean-over-layers" (a mean over all decoder layers) or "pre-llm" (the tokens that enter the LLM).
    options: settings of the strategy's own, by name (docs/methods.md).

    Fallbacks: a sample with no more visual tokens than the budget, or than it would keep, is not pruned. Pivots that
    do not exist (fewer text tokens than `text_pivots`, none after the image) are left out and the others share the
    budget; when none is left, one image pivot stands in. A budget below the number of pivots keeps the image pivots
    alone (without image pivots: one token). `exact=True` gives what `keep` leaves after the image pivots to the pivots
    in equal parts, one more to the first ones visited.

    Raises TypeError for a value of a wrong type and ValueError for one out of range; both name the field.
    """

    keep: int | float | None = None
    layer: int = 2
    image_pivots: int = 4
    text_pivots: int = 4
    strategy: str = "dart"
    pivot_order: str = "norm"
    scope: str = "span"
    exact: bool | None = None
    seed: int = 0
    reduction_ratio: float | None = None
    budget_kind: str = "after-layer"
    options: Mapping[str, Any] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        for name in ("layer", "image_pivots", "text_pivots", "seed"):
            value = getattr(self, name)
            if not _is_int(value):
                raise TypeError(f"{name} must be an int, got {value!r}")
            if value < 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        if self.image_pivots + self.text_pivots == 0:
            raise ValueError("image_pivots and text_pivots are both 0: at least one pivot is needed")
        if self.exact is not None and not isinstance(self.exact, bool):
            raise TypeError(f"exact must be True, False or None, got {self.exact!r}")
        for name, known in (("pivot_order", PIVOT_ORDERS), ("scope", SCOPES), ("budget_kind", BUDGET_KINDS)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.keep is not None and self.reduction_ratio is not None:
            raise ValueError("keep and reduction_ratio are both given: give one of them")
        if self.keep is None and self.reduction_ratio is None:
            object.__setattr__(self, "keep", DEFAULT_KEEP)
        self._check_budget()
        if not isinstance(self.strategy, str):
            raise TypeError(f"strategy must be a name, got {self.strategy!r}")
        if not isinstance(self.options, Mapping):
            raise TypeError(f"options must be a dict, got {self.options!r}")

    def _check_budget(self) -> None:
        if self.reduction_ratio is not None:
            if isinstance(self.reduction_ratio, bool) or not isinstance(self.reduction_ratio, (int, float)):
                raise TypeError(f"reduction_ratio must be a number, got {self.reduction_ratio!r}")
            if not 0 <= self.reduction_ratio <= 1:
                raise ValueError(f"reduction_ratio must be between 0 and 1, got {self.reduction_ratio}")
        elif _is_int(self.keep):
            if self.keep < 0:  # type: ignore[operator]
                raise ValueError(
                    f"keep as a number of tokens must be 0 or more (0 keeps the image pivots alone), got {self.keep}"
                )
        elif not isinstance(self.keep, float):
            raise TypeError(f"keep must be an int (tokens) or a float (fraction), got {self.keep!r}")
        elif not 0 < self.keep < 1:
            raise ValueError(f"keep as a fraction must be between 0 and 1 (both excluded), got {self.keep}")

    @property
    def pivots(self) -> int:
        """Pivots of both kinds."""
        return self.image_pivots + self.text_pivots

    def budget(self, visual_tokens: int) -> float:
        """The tokens asked for out of `visual_tokens`, before rounding to whole pivots and to whole tokens."""
        if self.reduction_ratio is not None:
            return visual_tokens * (1 - self.reduction_ratio)
        keep = self.keep
        return visual_tokens * keep if isinstance(keep, float) else float(keep or 0)

    def num_kept(self, visual_tokens: int, text_pivots: int | None = None) -> int:
        """Visual tokens that DART keeps of one token group of `visual_tokens`; text_pivots: as for `plan`."""
        return self.plan(visual_tokens, self.budget(visual_tokens), text_pivots)[0]

    def plan(self, visual_tokens: int, budget: float, text_pivots: int | None = None) -> tuple[int, int, list[int]]:
        """(tokens kept, image pivots, tokens taken by each visited pivot) for one token group of `visual_tokens`.

        budget: tokens asked for; text_pivots: how many really exist (default: all). A group that keeps everything has
        an empty list.
        """
        texts = self.text_pivots if text_pivots is None else min(text_pivots, self.text_pivots)
        images = min(self.image_pivots if self.image_pivots + texts else 1, visual_tokens)
        if visual_tokens <= budget:
            return visual_tokens, images, []
        if self.exact:
            images = min(images, int(budget))
        pivots = images + texts
        if pivots == 0:  # exact, nothing to keep and no text
            return 0, 0, []
        share = int(budget // pivots)
        takes = [share] * pivots
        if self.exact:
            rest = int(budget) - images
            takes = [rest // pivots + (k < rest % pivots) for k in range(pivots)]
        elif images == 0 and share == 0:
            takes = [1] + [0] * (pivots - 1)
        kept = images + sum(takes)
        if kept >= visual_tokens:
            return visual_tokens, images, []
        return kept, images, takes

    @classmethod
    def from_original(
        cls, mapping: Mapping[str, Any], *, anyres: bool = False, ratio_first: bool = False, **overrides: Any
    ) -> DartConfig:
        """Read the research code's dictionary; see `dart.compat.from_original`."""
        from dart.compat import from_original

        return from_original(mapping, anyres=anyres, ratio_first=ratio_first, **overrides)
