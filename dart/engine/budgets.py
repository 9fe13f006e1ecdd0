"""How many tokens a budget means for a token group, at each stage."""

from __future__ import annotations

from dart.config import DartConfig
from dart.strategies.base import Stage

DIGITS = 9  # to which tokens are counted, so that 15.999999999999998 are 16
HALVINGS = 60  # of the interval in which the common factor of several stages is looked for


def group_budgets(config: DartConfig, sizes: list[int]) -> list[float]:
    """The budget's share of each token group, in proportion to the groups' sizes.

    Whole-token budgets are shared by the largest remainder, so that they add up to the one asked for.
    """
    budget = config.budget(sum(sizes))
    shares = [budget * size / sum(sizes) for size in sizes]
    if config.reduction_ratio is not None or not isinstance(config.keep, int):
        return shares
    whole = [int(share) for share in shares]
    for k in sorted(range(len(shares)), key=lambda k: whole[k] - shares[k])[: int(budget) - sum(whole)]:
        whole[k] += 1
    return [float(count) for count in whole]


def check_budget(config: DartConfig, stages: tuple[Stage, ...], layers: int) -> None:
    """Raises ValueError for a budget that no image can be given."""
    if not stages or not 0 < stages[0].layer < layers:
        return
    if config.budget_kind == "pre-llm":
        raise ValueError(
            f"budget_kind='pre-llm' counts what enters the LLM, but strategy {config.strategy!r} drops tokens at layer "
            f"{stages[0].layer}: choose layer=0 or another budget_kind"
        )
    share = None if isinstance(config.keep, int) else config.budget(1)
    if config.budget_kind == "mean-over-layers" and share is not None and share < stages[0].layer / layers:
        raise _unreachable(f"{share:g} of the", stages[0].layer, layers, f"{stages[0].layer / layers:g} of them")


def _unreachable(asked: str, first: int, layers: int, smallest: str) -> ValueError:
    return ValueError(
        f"a mean of {asked} visual tokens over {layers} layers cannot be reached: layers 0 to {first - 1} keep all of "
        f"them; the smallest mean is {smallest}"
    )


def stage_budget(
    config: DartConfig, stages: tuple[Stage, ...], index: int, size: int, asked: float, layers: int
) -> float:
    """Tokens that stage `index` should leave of a group that began with `size`, when `asked` are asked for.

    `budget_kind` says of what (METHODS 3.1): after the last stage, as a mean over the decoder's layers, or of what
    enters the LLM. Raises ValueError for a budget that the stages cannot reach, with the smallest that they can.
    """
    if asked >= size:
        return float(size)
    if len(stages) == 1 and config.budget_kind != "mean-over-layers":
        return asked  # the research code's own roundings
    fractions = [1.0 if stage.fraction is None else stage.fraction for stage in stages]
    if config.budget_kind != "mean-over-layers":
        last = fractions[0 if config.budget_kind == "pre-llm" else -1]
        return min(float(size), round(asked / last * fractions[index], DIGITS)) if last else asked
    smallest = size * stages[0].layer / layers
    if asked < smallest:
        raise _unreachable(f"{asked:g} of {size}", stages[0].layer, layers, f"{smallest:g}")
    low, high = 0.0, 1.0 / min(fraction for fraction in fractions if fraction > 0)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if _mean(stages, fractions, middle, size, layers) <= asked else (low, middle)
    return min(float(size), round(low * fractions[index] * size, DIGITS))


def _mean(stages: tuple[Stage, ...], fractions: list[float], factor: float, size: int, layers: int) -> float:
    """Tokens as a mean over the layers when stage k leaves `factor * fractions[k]` of `size`."""
    edges = [stage.layer for stage in stages] + [layers]
    kept = [min(1.0, factor * fraction) * size for fraction in fractions]
    total = float(stages[0].layer * size)
    total += sum(count * (edges[k + 1] - edges[k]) for k, count in enumerate(kept))
    return total / layers
