"""`--model_args`: which of them are DART's, under the research code's names or DartConfig's, and what they mean."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from dart import DartConfig, strategies
from dart.utils import UserError

SWITCH = "Sparse"
# The research code's arguments -> its DART_config dictionary. Where the images are is read from each input, so the
# two image_token_* arguments are accepted and not used.
ORIGINAL = {
    "pruned_layer": "K",
    "image_token_start_index": "image_token_start_index",
    "image_token_length": "image_token_length",
    "max_num_trunction": "max_num_trunction",
    "reduction_ratio": "reduction_ratio",
    "retain_token_num_for_llava_next": "retain_token_num_for_llava_next",
    "pivot_image_token": "pivot_image_token",
    "pivot_text_token": "pivot_text_token",
}
BUDGETS = ("max_num_trunction", "reduction_ratio", "retain_token_num_for_llava_next")
CLEAN = tuple(field.name for field in fields(DartConfig) if field.name not in ORIGINAL)
TWINS = (("layer", "pruned_layer"), ("image_pivots", "pivot_image_token"), ("text_pivots", "pivot_text_token"))


@dataclass(frozen=True)
class DartArguments:
    """DART's part of the arguments.

    on: `Sparse`; mapping: the research code's dictionary; clean: the rest, under DartConfig's names.
    """

    on: bool
    mapping: dict[str, Any]
    clean: dict[str, Any]

    def config(self, *, anyres: bool = False, ratio_first: bool = False) -> DartConfig:
        """See `DartConfig.from_original`. Without any of the research code's names its visiting order is not meant.

        Raises UserError naming the argument.
        """
        clean = self.clean if self.mapping else {"pivot_order": "norm"} | self.clean
        try:
            config = DartConfig.from_original(self.mapping, anyres=anyres, ratio_first=ratio_first, **clean)
            strategies.get(config.strategy)
            return config
        except (TypeError, ValueError) as error:
            raise UserError(f"model_args: {error}") from error


def split(given: Mapping[str, Any], stock: Iterable[str]) -> tuple[DartArguments, dict[str, Any]]:
    """(DART's arguments, the others) of `given`; stock: the names that the model's class takes.

    `Sparse` is True unless it is given. Raises UserError for an unknown name, or two names for one thing.
    """
    stock = set(stock)
    known = {SWITCH, *ORIGINAL, *CLEAN, *stock}
    if unknown := sorted(set(given) - known):
        raise UserError(
            f"model_args: unknown {', '.join(unknown)}; DART's are {', '.join([SWITCH, *ORIGINAL, *CLEAN])}; "
            f"the model's are {', '.join(sorted(stock))}"
        )
    switch = given.get(SWITCH, True)
    if not isinstance(switch, bool):
        raise UserError(f"model_args: {SWITCH} must be True or False, got {switch!r}")
    values = {name: _absent_or(value) for name, value in given.items()}
    mapping = {ORIGINAL[name]: value for name, value in values.items() if name in ORIGINAL}
    clean = {name: value for name, value in values.items() if name in CLEAN}
    _refuse_doubles(values)
    ratio = values.get("reduction_ratio")
    if isinstance(ratio, (int, float)) and not 0 < ratio < 1:
        raise UserError(
            f"model_args: reduction_ratio must be between 0 and 1 (both excluded), got {ratio}; 0.778 drops 77.8 %"
        )
    dart = DartArguments(switch, mapping, clean)
    dart.config()  # a mistake is told before a model is loaded, also beside Sparse=False
    return dart, {name: value for name, value in given.items() if name in stock}


def _absent_or(value: Any) -> Any:
    """`None` on a command line is a word."""
    return None if isinstance(value, str) and value.lower() == "none" else value


def _refuse_doubles(values: Mapping[str, Any]) -> None:
    there = {name for name, value in values.items() if value is not None}
    doubles = [*TWINS, *(("keep", budget) for budget in BUDGETS)]
    for one, other in doubles:
        if {one, other} <= there:
            raise UserError(f"model_args: {one} and {other} are both given: give one of them")
