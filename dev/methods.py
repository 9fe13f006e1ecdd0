"""Write docs/methods.md from the registered strategies: `python -m dev.methods`."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import dart
from dart.config import BUDGET_KINDS
from dart.engine.budgets import check_budget, stage_budget
from dart.engine.selection import selector
from dart.strategies.base import Stage, Strategy

DOCUMENT = Path(__file__).resolve().parents[1] / "docs" / "methods.md"
LAYERS, TOKENS, BUDGET, TEXT = 32, 576, 64, 32
SOURCE = r"arXiv (?P<paper>\d{4}\.\d{5})|docs/(?P<page>[\w-]+\.md)|control"  # a page: a method of this project's own
FIRST_LINE = re.compile(rf"(?P<title>[^:]+): (?P<what>.+) \((?:{SOURCE})\)\.")
BLIND = (
    "| `--blind` of `llava.eval.run` | Blind: every image replaced by grey, what can be answered without it "
    "| - | image | - |" + " - |" * len(BUDGET_KINDS)
)
HEAD = f"""# Methods

Made by `python -m dev.methods` from [dart/strategies](../dart/strategies): one file each, whose docstring has the
equations, the defaults and what differs from the official code. A test holds this page and the code together. Names are
those of `DartConfig(strategy=...)`, `--strategies` and `STRATEGY=`; options go into `DartConfig(options={{...}})`.

- *needs*: the signals that it reads with its defaults ([dart/engine/signals.py](../dart/engine/signals.py)). A model
  that cannot give them is refused by name.
- *acts*: before which layers of a decoder of {LAYERS} it drops tokens; 0 is before the LLM, image before the processor.
  Where this is 2, `DartConfig(layer=)` sets it.
- *mean*: visual tokens as a mean over {LAYERS} layers when {BUDGET} of {TOKENS} are asked for, by `budget_kind`: tokens
  left after the last stage, a mean over the layers, or tokens that enter the LLM. What a strategy cannot do is refused;
  for a mean that its stages cannot reach, the smallest one that they can is given. Compare methods of equal means.
- *question*: the text after the last image, without special tokens. Where a model has several end tokens (Qwen), the
  template's tail is left out, too; elsewhere (LLaVA-1.5) it is plain text and stays.
"""
NOTES = """## Notes

- **v2drop on `llava-tiny`** is far below random (4 % against 29 % on `needle-2x2`, 64 tokens left after the last
  stage, 48 questions). The rule is the paper's; the model turns its signal round. Its layers 1 and 2 change the
  states of plain background by 25 and 58, those of the tokens that carry the answer by 4 and 4 (in norm; before them
  both are near 4): the empty patches, all alike, grow to norms of 80, as sinks of attention do. Tokens of the answer
  are at the 0.00 to 0.08 quantile of the change there, so that V2Drop keeps background. Keeping the smallest changes
  instead gives 90 % on that set: the sign belongs to the model, not to the code. Trained on large data, models are
  reported to behave the other way.
"""
COLUMNS = ["strategy", "what it keeps", "needs", "acts", "options", *(f"mean, {kind}" for kind in BUDGET_KINDS)]


def first_line(strategy: Strategy) -> re.Match[str]:
    """Of its module's docstring. Raises ValueError where it does not follow the convention."""
    line = (sys.modules[type(strategy).__module__].__doc__ or "").partition("\n")[0]
    match = FIRST_LINE.fullmatch(line)
    if match is None:
        raise ValueError(
            f"{type(strategy).__module__} must begin with 'Name: what it keeps (arXiv NNNN.NNNNN).', "
            f"'(docs/PAGE.md)' or '(control)', not {line!r}"
        )
    return match


def config_of(name: str, kind: str) -> dart.DartConfig:
    """The budget as a number of tokens, or as a share where the strategy needs one."""
    config = dart.DartConfig(keep=BUDGET, strategy=name, budget_kind=kind)
    in_decoder = type(dart.strategies.get(name)).pixels is Strategy.pixels
    return config if in_decoder else dart.DartConfig(keep=BUDGET / TOKENS, strategy=name, budget_kind=kind)


def stages_of(config: dart.DartConfig) -> tuple[Stage, ...]:
    """Where it acts in a decoder of LAYERS layers."""
    selectors = selector(config, LAYERS)
    return selectors[0].stages if selectors else ()


def per_layer(config: dart.DartConfig, stages: tuple[Stage, ...]) -> list[int]:
    """Visual tokens in each layer, of TOKENS at first. Raises ValueError for a budget that cannot be reached."""
    strategy = dart.strategies.get(config.strategy)
    check_budget(config, stages, LAYERS)
    counts: list[int] = []
    left = TOKENS
    for index, stage in enumerate(stages):
        counts += [left] * (stage.layer - len(counts))
        budget = stage_budget(config, stages, index, TOKENS, BUDGET, LAYERS)
        left = min(left, strategy.count(config, left, budget, TEXT))
    return counts + [left] * (LAYERS - len(counts))


def mean(name: str, kind: str) -> str:
    """The cell of one budget kind."""
    config = config_of(name, kind)
    stages = stages_of(config)
    if not stages:
        return f"about {BUDGET}"  # the processor decides
    try:
        return f"{sum(per_layer(config, stages)) / LAYERS:.4g}"
    except ValueError:
        smallest = TOKENS * stages[0].layer / LAYERS
        return f"refused (from {smallest:g} on)" if kind == "mean-over-layers" else "refused"


def written(value: Any) -> str:
    """An option's value, short."""
    if isinstance(value, (tuple, list)):
        return f"({', '.join(map(written, value))})"
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def row(name: str) -> str:
    """The strategy's line of the table."""
    strategy, line = dart.strategies.get(name), first_line(dart.strategies.get(name))
    source = Path(sys.modules[type(strategy).__module__].__file__ or "").name
    what = f"{line['title']}: {line['what']}"
    if line["paper"]:
        what += f" ([{line['paper']}](https://arxiv.org/abs/{line['paper']}))"
    if line["page"]:
        what += f" (this project's own: [{line['page']}]({line['page']}))"
    config = config_of(name, BUDGET_KINDS[0])
    acts = ", ".join(str(stage.layer) for stage in stages_of(config)) or "image"
    options = ", ".join(f"`{key}={written(value)}`" for key, value in strategy.options.items()) or "-"
    needs = ", ".join(f"`{each}`" for each in sorted(strategy.needed(config))) or "-"
    cells = [f"[{name}](../dart/strategies/{source})", what, needs, acts, options]
    return "| " + " | ".join([*cells, *(mean(name, kind) for kind in BUDGET_KINDS)]) + " |"


def table(names: list[str]) -> str:
    return "\n".join(["| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|", *map(row, names)])


def document() -> str:
    """The whole page."""
    names = [name for name in dart.strategies.available() if _own(dart.strategies.get(name))]
    controls = [name for name in names if not any(first_line(dart.strategies.get(name)).group("paper", "page"))]
    methods = [name for name in names if name not in controls]
    return f"{HEAD}\n{table(methods)}\n\n## Controls\n\n{table(controls)}\n{BLIND}\n\n{NOTES}"


def _own(strategy: Strategy) -> bool:
    """Is it a file of the package?"""
    return type(strategy).__module__.startswith(f"{dart.strategies.__name__}.")


if __name__ == "__main__":
    DOCUMENT.write_text(document(), encoding="utf-8")
