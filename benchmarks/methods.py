"""The prefill of every method at the shapes of 7B models, beside accuracy: `python -m benchmarks.methods --out FILE`.

All methods keep equally many visual tokens as a mean over the decoder's layers, with the same random weights and
inputs. A few at a time run in turns with the unpruned model; speed-ups are over the median of its runs. A prefill is
everything from the pixels to the first token's logits: what a method reads in the vision tower is in its figure.
Accuracy is another model's, of a run of `dart.compare`. The file is written after every few methods: the same command
goes on from there, and another one adds shapes and methods. Prints tables, and one JSON line last.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

import dart
from benchmarks.arguments import check_known, list_of, natural, positive
from benchmarks.engines import Engine
from benchmarks.measure import summary
from benchmarks.methods_report import draw, to_text
from benchmarks.output import publish
from benchmarks.phases import run_once
from benchmarks.plot import check_chart
from benchmarks.shapes import SHAPES, Workload, build, workload
from dart import strategies
from dart.compare.plan import Rules, changes_pixels
from dart.config import SCOPES
from dart.utils import (
    DTYPES,
    Parser,
    Sample,
    UserError,
    device_of,
    exits_cleanly,
    in_turns,
    one_line,
    provenance,
    write_json,
)
from llava.files import read_json

ACCURACY = Path("docs", "results", "compare-llava-tiny.json")
KIND = "mean-over-layers"
BETWEEN = 1  # text token between two images: without it they are one run of tokens, which no grid fits
PHASES = ("selector", "vision", "ttft")
OTHER_IMAGES = "it makes smaller images, which have as many tokens in a model of fixed resolution"
Row = dict[str, Any]


@dataclass(frozen=True)
class Plan:
    """repeats, warm_up: rounds that count, and rounds before them; beside: methods in a round with the unpruned model;
    mark: the layer that ends the phase "before", which is not used here."""

    repeats: int
    warm_up: int
    beside: int
    mark: int


@dataclass
class Timed:
    """A prompt with one method's settings, None for the unpruned model. error: what it was refused for."""

    work: Workload
    config: dart.DartConfig | None
    plan: Plan
    mean_tokens: float = 0.0
    error: str | None = None

    def run(self) -> Sample:
        """Seconds of a prefill's phases, and of the selection; nothing once it was refused."""
        if self.error is not None:
            return {}
        if self.config is None:
            return self._prefill()
        try:
            with dart.prune(self.work.model, self.config) as handle:
                seconds = self._prefill()
        except ValueError as error:
            self.error = one_line(error)
            return {}
        if handle.last is None:
            raise UserError(f"strategy {self.config.strategy!r} saw no visual tokens in this prompt")
        self.mean_tokens = handle.last.mean_visual_tokens[0]
        return {**seconds, "selector": handle.last.seconds}

    def _prefill(self) -> Sample:
        return run_once(self.work, self.plan.mark, 1, Engine.of("eager", self.work.model))[0]


def measure(work: Workload, configs: dict[str, dart.DartConfig], plan: Plan, tick: Callable[[], object]) -> list[Row]:
    """A row for each method, all of them in turns with the unpruned model. tick: called after each prefill."""
    timed = [Timed(work, config, plan) for config in (None, *configs.values())]

    def counted(each: Timed) -> Sample:
        sample = each.run()
        tick()
        return sample

    base, *samples = in_turns([partial(counted, each) for each in timed], plan.repeats, plan.warm_up)
    rows: list[Row] = []
    for name, each, own in zip(configs, timed[1:], samples, strict=True):
        if each.error is not None:
            rows.append({"method": name, "error": each.error})
            continue
        rows.append(
            {
                "method": name,
                "mean_tokens": round(each.mean_tokens, 2),
                "ms": {phase: _ms(own, phase) for phase in PHASES},
                "unpruned_ms": {phase: _ms(base, phase) for phase in PHASES[1:]},
                "repeats": plan.repeats,
            }
        )
    return rows


def _ms(samples: list[Sample], phase: str) -> dict[str, float]:
    return summary([1000 * sample[phase] for sample in samples], 2)


def accuracy_of(path: Path) -> Row:
    """The smallest budget of a run of `dart.compare`: its model, its share of the visual tokens, and for each method
    the score relative to the unpruned model's in percent."""
    found = read_json(path)
    budget = min(found["budgets"])
    if found["budget_kind"] != KIND or not isinstance(budget, int):
        raise UserError(f"--accuracy {path} must be a run with --budget-kind {KIND} and --keep in tokens")
    rows = found["averages"]
    whole = next(row["mean_tokens"] for row in rows if row["budget"] is None)
    relative = {
        row["method"]: round(row["relative"], 2) for row in rows if row["budget"] == budget and row.get("equal")
    }
    return {
        "source": str(path),
        "model": Path(found["model_name"]).name,
        "data": [data["name"] for data in found["data"]],
        "layers": len(next(cell["per_layer"] for cell in found["cells"] if "per_layer" in cell)),
        "keep": budget,
        "share": budget / whole,
        "relative": relative,
    }


class Record:
    """The results file, with what earlier runs measured."""

    def __init__(self, path: Path | None, overwrite: bool):
        self.path = path
        known = path is not None and path.is_file() and not overwrite
        self.result: Row = read_json(path) if known and path is not None else {"shapes": {}}

    def shape(self, name: str, conditions: Row) -> Row:
        """The part of one shape. Raises UserError when it holds rows that were measured under other conditions."""
        part = self.result["shapes"].setdefault(name, {**conditions, "rows": []})
        for key, value in conditions.items():
            if part[key] != value:
                raise UserError(
                    f"{self.path} has {name} with {key} {part[key]}, this run has {value}: choose another --out, or "
                    "start over with --overwrite"
                )
        return part

    def write(self) -> None:
        if self.path is not None:
            write_json(self.path, self.result)


def parser_() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=list_of(str), default=["llava-1.5-7b"], help=f"of {', '.join(SHAPES)}")
    parser.add_argument("--methods", type=list_of(str), help="such as dart,spread; default: all")
    parser.add_argument("--keep", type=float, help="share of the visual tokens; default: that of --accuracy")
    parser.add_argument("--layer", type=positive, default=2, help="K, of the methods that act at one layer")
    parser.add_argument("--scope", choices=SCOPES, default="span", help="of several images: a quota each, or one pool")
    parser.add_argument("--accuracy", type=Path, default=ACCURACY, help="results.json of `python -m dart.compare`")
    parser.add_argument("--layers", type=positive, help="fewer decoder layers, where memory is short")
    parser.add_argument("--dtype", choices=DTYPES, default="bfloat16")
    parser.add_argument("--attn", default="sdpa")
    parser.add_argument("--device", help="default: CUDA where there is one")
    parser.add_argument("--repeats", type=positive, default=2, help="rounds that count")
    parser.add_argument("--warm-up", type=natural, default=1, help="rounds before them")
    parser.add_argument("--beside", type=positive, default=4, help="methods that share a round with the unpruned model")
    parser.add_argument("--threads", type=positive, help="of the CPU; default: torch's")
    parser.add_argument("--out", type=Path, help="such as docs/results/methods-cpu.json")
    parser.add_argument("--overwrite", action="store_true", help="throw earlier results away")
    parser.add_argument("--plot", help="a PNG file: accuracy over speed-up")
    return parser


def run(args: argparse.Namespace) -> Row:
    """Measure what is missing. Raises ValueError or UserError for bad arguments."""
    known = strategies.available()
    check_known("--models", args.models, SHAPES)
    check_known("--methods", args.methods or [], known)
    check_chart(args.plot)
    device = device_of(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    accuracy = accuracy_of(args.accuracy)
    share = args.keep or accuracy["share"]
    if not 0 < share < 1:
        raise UserError(f"--keep must be a share of the visual tokens between 0 and 1, got {args.keep:g}")
    record = Record(args.out, args.overwrite)
    record.result["accuracy"] = accuracy
    source = provenance()
    conditions = {key: getattr(args, key) for key in ("layer", "scope", "dtype", "attn")}
    conditions |= {"share": round(share, 4), "hardware": source["hardware"]}
    plan = Plan(args.repeats, args.warm_up, args.beside, args.layer)
    for model in args.models:
        part = record.shape(model, {**conditions, "layers": args.layers or SHAPES[model].layers})
        done = {row["method"] for row in part["rows"]}
        if missing := [name for name in args.methods or known if name not in done]:
            part |= {"command": source["command"], "commit": source["commit"], "date": source["date"]}
            part["versions"] = source["versions"]
            _measure_shape(args, model, share, missing, plan, part, record.write, device)
    record.write()
    return record.result


def _measure_shape(
    args: argparse.Namespace,
    model: str,
    share: float,
    methods: list[str],
    plan: Plan,
    part: Row,
    save: Callable[[], None],
    device: torch.device,
) -> None:
    """Add the rows of `methods` to `part`, a few at a time."""
    shape = replace(SHAPES[model], layers=args.layers or SHAPES[model].layers, between=BETWEEN)
    work = workload(shape, build(shape, device, getattr(torch, args.dtype), args.attn), 1)
    keep = round(share * work.visual_tokens)
    part |= {"visual_tokens": work.visual_tokens, "tokens": work.length, "keep": keep, "note": shape.note}
    rules = Rules([keep], KIND, args.layer, args.scope)
    rounds = plan.repeats + plan.warm_up
    part["rows"] += [{"method": name, "error": OTHER_IMAGES} for name in methods if changes_pixels(name)]
    names = [name for name in methods if not changes_pixels(name)]
    groups = [names[k : k + plan.beside] for k in range(0, len(names), plan.beside)]
    with tqdm(total=rounds * (len(names) + len(groups)), desc=f"{model}, prefills", mininterval=1) as bar:
        for group in groups:
            configs = {name: rules.config(name, keep, None) for name in group}
            part["rows"] += measure(work, configs, plan, bar.update)
            save()
    del work
    gc.collect()


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    args = parser_().parse_args(argv)
    result = run(args)
    print(to_text(result))
    if args.plot:
        draw(Path(args.plot), result)
    publish(result, str(args.out) if args.out else None)


if __name__ == "__main__":
    main()
