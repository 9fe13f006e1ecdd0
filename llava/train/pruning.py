"""The flags of what is dropped while a LLaVA learns, as `dart.training` and `dart.epic` take it."""

from __future__ import annotations

import re
from dataclasses import replace

import dart
from dart.epic import PRESETS, Epic
from dart.training import DartCallback
from dart.utils import UserError
from llava.train.arguments import PruningArguments

DEFAULT_KEEP = "128"
DEFAULT_STRATEGY = "dart"  # of --epic


def pruning_callback(args: PruningArguments) -> DartCallback | None:
    """What prunes, None without --strategy. Raises UserError naming the flag."""
    if args.strategy is None:
        return None
    config, budgets = _settings(args, args.strategy, args.keep or DEFAULT_KEEP)
    return DartCallback(config, budgets)


def epic_settings(args: PruningArguments) -> tuple[Epic, dart.DartConfig] | None:
    """(schedule and loss, strategy), None without --epic. Raises UserError naming the flag."""
    if args.epic is None:
        if args.alpha is not None or args.temperature is not None:
            raise UserError("--alpha and --temperature are of --epic, which is not given")
        return None
    if args.epic not in PRESETS:
        raise UserError(f"--epic must be one of {', '.join(PRESETS)}, got {args.epic!r}")
    if args.keep is not None:
        raise UserError(f"--keep {args.keep}: --epic has a schedule of its own, leave it out")
    given = {"weight": args.alpha, "temperature": args.temperature}
    try:
        epic = replace(PRESETS[args.epic], **{name: value for name, value in given.items() if value is not None})
    except ValueError as error:
        raise UserError(f"--alpha (weight), --temperature: {error}") from error
    return epic, _settings(args, args.strategy or DEFAULT_STRATEGY, DEFAULT_KEEP)[0]


def _settings(args: PruningArguments, strategy: str, keep: str) -> tuple[dart.DartConfig, range]:
    """(the settings, the budgets to draw from)."""
    match = re.fullmatch(r"(\d+)(?:-(\d+))?", keep)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, -1)
    if not 0 < least <= most:
        raise UserError(f"--keep must be a number of tokens (128) or a range (64-192), got {keep!r}")
    try:
        config = dart.DartConfig(
            keep=most,
            strategy=strategy,
            layer=args.pruned_layer,
            image_pivots=args.pivot_image_token,
            text_pivots=args.pivot_text_token,
            scope=args.scope,
        )
        dart.strategies.in_model(config.strategy)
    except (TypeError, ValueError) as error:
        raise UserError(f"--strategy, --keep and what belongs to them: {error}") from error
    return config, range(least, most + 1)
