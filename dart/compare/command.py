"""Compare every method at every budget on one or more data sets, at equal true budgets on one engine.

Writes results.json, results.csv, results.md, pareto.png and report.html (one file, opens without a network) to --out,
and the answers themselves, from which the same command goes on after an interruption.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from dart.cli import ATTENTION, DTYPES, budget, count
from dart.config import BUDGET_KINDS, SCOPES
from dart.utils import (
    Parser,
    UserError,
    add_revision,
    checkpoint_folder,
    exits_cleanly,
    fingerprint,
    needed,
    provenance,
    write_json,
    write_text,
)

LIMIT, TIMED, PICTURES, FRAMES = 80, 8, 24, 8
LAYER = 2


def _several(parse: Callable[[str], Any]) -> Callable[[str], list[Any]]:
    """Values with commas between, none twice."""

    def parse_all(text: str) -> list[Any]:
        return list(dict.fromkeys(parse(word.strip()) for word in text.split(",")))

    return parse_all


def _limit(text: str) -> int | None:
    return None if text == "all" else count(1)(text)


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m dart.compare`."""
    out = Parser(
        prog="python -m dart.compare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    out.add_argument("--model", required=True, help="checkpoint folder or hub name of any supported family")
    add_revision(out)
    out.add_argument(
        "--data",
        required=True,
        nargs="+",
        action="extend",
        metavar="DATA",
        help="a benchmark's name, NAME=FOLDER, or your own .jsonl file or folder (docs/compare.md)",
    )
    out.add_argument("--keep", type=_several(budget), default=[192, 128, 64], help="budgets: 192,128,64 or 0.222")
    out.add_argument(
        "--methods",
        default="all",
        help="all, or names with commas between; the baseline and the controls are always in",
    )
    out.add_argument("--budget-kind", choices=BUDGET_KINDS, default="mean-over-layers", help="what a budget counts")
    out.add_argument("--layer", type=count(0), help=f"of methods that drop tokens in the LLM ({LAYER}; pre-llm: 0)")
    out.add_argument("--scope", choices=SCOPES, default="span", help="a quota per image, or one for all")
    out.add_argument("--seeds", type=_several(count(0)), default=[0, 1, 2], help="of the random method (0,1,2)")
    out.add_argument("--baseline", default="dart", help="the method that the others are tested against (dart)")
    out.add_argument("--limit", type=_limit, default=LIMIT, help=f"questions of each data set, or all ({LIMIT})")
    out.add_argument("--timed", type=count(0), default=TIMED, help=f"samples whose prefill is timed ({TIMED})")
    out.add_argument("--pictures", type=count(0), default=PICTURES, help=f"samples shown in the report ({PICTURES})")
    out.add_argument("--frames", type=count(1), default=FRAMES, help=f"frames of a video, at most ({FRAMES})")
    out.add_argument("--max-new-tokens", type=count(1), help="of an answer (default: the data set's own number)")
    out.add_argument("--device", help="default: a GPU where there is one, else cpu")
    out.add_argument("--dtype", choices=DTYPES, help="default: float32 on a CPU, else the checkpoint's")
    out.add_argument(
        "--attn-implementation", choices=ATTENTION, help="attention kernel (default: transformers' choice)"
    )
    out.add_argument("--out", type=Path, help="folder (default: outputs/compare/MODEL)")
    out.add_argument("--overwrite", action="store_true", help="throw earlier answers away")
    return out


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    """The command `python -m dart.compare`. argv: the words after it; None: the process's own."""
    args = parser().parse_args(argv)
    from dart.compare import data, page, plan, plots, run, summary, tables

    needed("matplotlib.figure", "plot")  # said now, not after hours
    methods = plan.methods_of(args.methods, args.baseline)
    layer = args.layer if args.layer is not None else (0 if args.budget_kind == "pre-llm" else LAYER)
    rules = plan.Rules(args.keep, args.budget_kind, layer, args.scope, args.seeds)
    settings = plan.settings_of(methods, rules)
    whole = [data.open_data(text) for text in args.data]
    if args.max_new_tokens:
        whole = [replace(each, max_new_tokens=args.max_new_tokens) for each in whole]
    names = [each.name for each in whole]
    if len(set(names)) < len(names):
        raise UserError(f"two data sets have one name ({', '.join(names)}): rename a file or folder")
    out = args.out or Path("outputs", "compare") / Path(args.model).name
    if out.exists() and not out.is_dir():
        raise UserError(f"--out {out} is no folder")
    from transformers.utils import logging

    from dart.cli.loading import load

    logging.disable_progress_bar()
    folder = checkpoint_folder(args.model, args.revision)
    loaded = load(folder, args.device, args.dtype, args.attn_implementation)
    model = loaded.model
    asking = run.Asking(loaded, rules, args.frames, args.timed)
    origin = provenance()
    facts = {
        "model": fingerprint(folder),
        "revision": args.revision,
        "model_type": model.config.model_type,
        "dtype": str(model.dtype).removeprefix("torch."),
        "attention": model.config.get_text_config(decoder=True)._attn_implementation,
        "device": model.device.type,
        "hardware": origin["hardware"],
        "layer": layer,
        "scope": args.scope,
        "budget_kind": args.budget_kind,
        "frames": args.frames,
        "timed": args.timed,
    }
    began, asked = time.monotonic(), 0
    parts: list[summary.Summary] = []
    for full in whole:
        part = full.limited(args.limit)
        with run.Answers(out, full, {**facts, "questions_sha256": full.digest()}, args.overwrite) as answers:
            asked -= len(answers.rows)
            refused = run.ask_all(asking, part, settings, answers)
            asked += len(answers.rows)
        parts.append(summary.Summary(part, answers, settings, refused, rules, args.baseline))
    cells = [cell for part in parts for cell in part.cells()]
    results = {
        "model_name": args.model,
        **facts,
        "budgets": args.keep,
        "baseline": args.baseline,
        "seeds": args.seeds,
        "data": [
            {"name": each.data.name, "samples": len(each.data.samples), "of": len(full.samples), "note": each.data.note}
            for each, full in zip(parts, whole, strict=True)
        ],
        "methods": summary.about(methods),
        "cells": [{name: value for name, value in cell.items() if name != "units"} for cell in cells],
        "averages": summary.averages(cells, names),
        **origin,
    }
    write_json(out / "results.json", results)
    write_text(out / "results.csv", tables.to_csv(results))
    write_text(out / "results.md", tables.to_markdown(results))
    plots.draw(out / "pareto.png", results)
    write_text(out / "report.html", page.to_html(results, parts, asking, args.pictures))
    print(tables.to_markdown(results))
    seconds = time.monotonic() - began
    print(json.dumps({"report": str(out / "report.html"), "answers": asked, "seconds": round(seconds, 1)}))
