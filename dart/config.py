"""`DartConfig`: what to keep, where to prune, and in which order the pivots choose."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

PIVOT_ORDERS = ("norm", "original")
SCOPES = ("span", "joint")
DEFAULT_KEEP = 128

# The original's dictionary (`model.config.DART_config`) -> the fields below. Where a picture's tokens are is a fact
# of each input, so the two image_token_* entries are accepted and not used.
ORIGINAL_FIELDS = {"K": "layer", "pivot_image_token": "image_pivots", "pivot_text_token": "text_pivots"}
ORIGINAL_BUDGETS = ("max_num_trunction", "reduction_ratio", "retain_token_num_for_llava_next")
ORIGINAL_IGNORED = ("image_token_start_index", "image_token_length")
ORIGINAL_SWITCH = "Sparse"
ORIGINAL_EXTRAS = ("pivot_order", "strategy", "scope", "exact", "seed")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class DartConfig:
    """Settings of one pruning run.

    keep: visual tokens to keep per sample: an int >= 0, or a fraction in (0, 1). None: `reduction_ratio` decides.
    layer: K; tokens are dropped between decoder layers K-1 and K (paper, section 3; default 2). 0 drops embeddings.
    image_pivots, text_pivots: how many pivots of each kind (largest L1 norm of the keys).
    strategy: a name registered in `dart.strategies`.
    pivot_order: "norm" (image pivots by falling norm, then text pivots by falling norm; computed in float32, equals go
        to the lower position) or "original" (the order of the research code's Python set, with its roundings, which
        published numbers rest on; one small host read a sample).
    scope: "span" shares the budget over a sample's pictures (LLaVA-NeXT: over every view of them, the overview and
        the tiles) in proportion to their tokens, "joint" pools them.
    exact: keep exactly `keep` tokens. By default, as in the research code, each of P pivots takes `budget // P`
        tokens, and the image pivots come on top: 128 keeps 4 + 8 * 16 = 132, a ratio of 0.778 of 576 keeps 124.
    seed: for strategies that draw at random.
    reduction_ratio: the fraction to drop, in [0, 1], as the research code states it; instead of `keep`. 0 drops
        nothing, 1 keeps the image pivots alone.

    Fallbacks: a sample with no more visual tokens than the budget, or than it would keep, is not pruned. Pivots that
    do not exist (fewer text tokens than `text_pivots`, none after the picture) are left out and the others share the
    budget; when none is left, one image pivot stands in. A budget below the number of pivots keeps the image pivots
    alone (without image pivots: one token). `exact=True` gives what `keep` leaves after the image pivots to the pivots
    in equal parts, one more to the first ones visited. Raises TypeError or ValueError naming the field.
    """

    keep: int | float | None = None
    layer: int = 2
    image_pivots: int = 4
    text_pivots: int = 4
    strategy: str = "dart"
    pivot_order: str = "norm"
    scope: str = "span"
    exact: bool = False
    seed: int = 0
    reduction_ratio: float | None = None

    def __post_init__(self) -> None:
        from dart import strategies

        for name in ("layer", "image_pivots", "text_pivots", "seed"):
            value = getattr(self, name)
            if not _is_int(value):
                raise TypeError(f"{name} must be an int, got {value!r}")
            if value < 0:
                raise ValueError(f"{name} must be 0 or more, got {value}")
        if self.image_pivots + self.text_pivots == 0:
            raise ValueError("image_pivots and text_pivots are both 0: at least one pivot is needed")
        if not isinstance(self.exact, bool):
            raise TypeError(f"exact must be True or False, got {self.exact!r}")
        for name, known in (("pivot_order", PIVOT_ORDERS), ("scope", SCOPES)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(known)}, got {getattr(self, name)!r}")
        if self.keep is not None and self.reduction_ratio is not None:
            raise ValueError("keep and reduction_ratio are both given: give one of them")
        if self.keep is None and self.reduction_ratio is None:
            object.__setattr__(self, "keep", DEFAULT_KEEP)
        self._check_budget()
        strategies.get(self.strategy)

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
        """The tokens asked for out of `visual_tokens`, before rounding to whole pivots."""
        if self.reduction_ratio is not None:
            return visual_tokens * (1 - self.reduction_ratio)
        keep = self.keep
        return visual_tokens * keep if isinstance(keep, float) else float(keep or 0)

    def num_kept(self, visual_tokens: int, text_pivots: int | None = None) -> int:
        """Visual tokens kept of `visual_tokens` in one pool; `text_pivots`: how many really exist (default: all)."""
        return self.plan(visual_tokens, self.budget(visual_tokens), text_pivots)[0]

    def plan(self, visual_tokens: int, budget: float, text_pivots: int | None = None) -> tuple[int, int, list[int]]:
        """(tokens kept, image pivots, tokens taken by each visited pivot) for one pool of `visual_tokens`.

        A pool that keeps everything has an empty list.
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
        """Read the research code's dictionary.

        A budget of None is absent; `max_num_trunction` wins over the ratio, as there; a budget of no kind means 128.

        anyres: the checkpoint is a LLaVA-NeXT one, where `retain_token_num_for_llava_next` is the budget
            and all tiles are one pool unless the mapping has a `scope`.
        ratio_first: for Qwen, where `reduction_ratio` is the budget whenever it is there.
        """
        known = {*ORIGINAL_FIELDS, *ORIGINAL_BUDGETS, *ORIGINAL_IGNORED, *ORIGINAL_EXTRAS, ORIGINAL_SWITCH}
        if unknown := sorted(set(mapping) - known):
            raise ValueError(f"DART_config has unknown keys {', '.join(unknown)}; known: {', '.join(sorted(known))}")
        if (switch := mapping.get(ORIGINAL_SWITCH, True)) is not True:
            raise ValueError(f"{ORIGINAL_SWITCH} must be True here, got {switch!r} (False: do not prune at all)")
        fields: dict[str, Any] = {new: mapping[old] for old, new in ORIGINAL_FIELDS.items() if old in mapping}
        fields |= {name: mapping[name] for name in ORIGINAL_EXTRAS if name in mapping}
        fields.setdefault("pivot_order", "original")
        if anyres:
            fields.setdefault("scope", "joint")
        retain = mapping.get("retain_token_num_for_llava_next")
        if anyres and retain is not None:
            fields["keep"] = retain
        elif ratio_first and mapping.get("reduction_ratio") is not None:
            fields["reduction_ratio"] = mapping["reduction_ratio"]
        elif mapping.get("max_num_trunction") is not None:
            fields["keep"] = mapping["max_num_trunction"]
        elif mapping.get("reduction_ratio") is not None:
            fields["reduction_ratio"] = mapping["reduction_ratio"]
        return cls(**(fields | overrides))
