"""A table of benchmarks, strategies and budgets: `python -m llava.eval.suite --benchmarks pope,mme --keep 192,128,64`.

Every cell (a benchmark under a setting) is one run of the evaluation loop. Finished cells are written to one JSON file
at once and are not run again; an interrupted one resumes at its last answer. A benchmark that cannot be run is a row of
the table that says why, is tried again the next time, and makes the exit code 1. Flags of the loop (--device,
--batch-size, ...) pass through.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import dart
from dart.cli import count
from dart.config import PIVOT_ORDERS
from dart.records import check_regular
from dart.utils import Parser, Unfinished, UserError, exits_cleanly, one_line, provenance, write_json, write_text
from llava.eval import tasks
from llava.eval.engine.answers import read_lines
from llava.eval.engine.ranks import Ranks
from llava.eval.engine.runner import Runner
from llava.eval.engine.suite_table import BLIND, UNPRUNED, to_html, to_markdown
from llava.eval.vtc import run as vtc
from llava.files import EMBEDDED_DATA, EMBEDDED_MODEL, or_embedded, read_json

RANDOM = "random"


@dataclass(frozen=True)
class Setting:
    """One row of the table. keep: None = unpruned; blind: every image replaced by grey."""

    name: str
    strategy: str | None = None
    keep: int | None = None
    pivot_order: str | None = None
    seed: int | None = None
    blind: bool = False

    def flags(self) -> list[str]:
        if self.keep is None:
            return ["--blind"] if self.blind else []
        flags = ["--sparse", "--max_num_trunction", str(self.keep), "--strategy", str(self.strategy)]
        flags += ["--pivot_order", self.pivot_order] if self.pivot_order else []
        return flags + (["--seed", str(self.seed)] if self.seed is not None else [])


def settings_of(
    strategies: list[str], keeps: list[int], pivot_orders: list[str], seeds: list[int], blind: bool
) -> Iterator[Setting]:
    """The table's rows: unpruned, blind, then every budget with every strategy (each pivot order, each seed)."""
    yield Setting(UNPRUNED)
    if blind:
        yield Setting(BLIND, blind=True)
    for keep in keeps:
        for strategy in strategies:
            if strategy == RANDOM:
                for seed in seeds:
                    yield Setting(f"{strategy}-{keep}-seed{seed}", strategy, keep, seed=seed)
            elif strategy == "dart":
                for order in pivot_orders:
                    yield Setting(f"{strategy}-{order}-{keep}", strategy, keep, order)
            else:
                yield Setting(f"{strategy}-{keep}", strategy, keep)


class Suite:
    """Runs the missing cells of one results file. Raises UserError for a file of another checkpoint."""

    def __init__(self, checkpoint: str, data_of: Callable[[str], Path], out: Path, work: Path, loop_flags: list[str]):
        check_regular(out)
        self.data_of, self.out, self.runner = data_of, out, Runner(checkpoint, work, loop_flags)
        digest = self.runner.digest
        known = read_json(out) if out.is_file() else {"checkpoint_sha256": digest}
        if known.get("checkpoint_sha256") != digest:
            raise UserError(
                f"{out} holds results of another checkpoint; choose another --out, or start with --overwrite"
            )
        self.results = {"checkpoint_sha256": digest, "settings": [], "cells": {}} | known

    def cells(self, benchmarks: list[str], settings: list[Setting]) -> None:
        """Run what is missing, row by row, and write the results after every cell."""
        named = {s["name"]: s for s in self.results["settings"]} | {s.name: asdict(s) for s in settings}
        self.results["settings"] = list(named.values())
        for setting in settings:
            for benchmark in benchmarks:
                key = f"{benchmark}/{setting.name}"
                if "score" not in self.results["cells"].get(key, {}):
                    print(f"--- {key}", flush=True)
                    self.results["cells"][key] = self._cell(benchmark, setting)
                    self._write()
        self._write()

    def _write(self) -> None:
        self.results |= provenance()
        write_json(self.out, self.results)
        write_text(self.out.with_suffix(".md"), to_markdown(self.results))
        write_text(self.out.with_suffix(".html"), to_html(self.results))

    def _cell(self, benchmark: str, setting: Setting) -> dict[str, Any]:
        """The figures of one cell, or `error` and the reason. Raises what is wrong with the checkpoint: no cell's."""
        try:
            (task, split), data = part_of(benchmark), self.data_of(benchmark)
            task.examples(data, split)
        except (UserError, FileNotFoundError) as error:
            return self._not_run(error)
        _ = self.runner.loaded
        try:
            return self._evaluate(benchmark, setting)
        except (UserError, FileNotFoundError) as error:
            return self._not_run(error)

    def _not_run(self, error: Exception) -> dict[str, Any]:
        print(f"not run: {one_line(error)}", flush=True)
        return {"error": one_line(error)}

    def _evaluate(self, benchmark: str, setting: Setting) -> dict[str, Any]:
        (task, split), data = part_of(benchmark), self.data_of(benchmark)
        split = task.split(data, split)
        examples = task.examples(data, split)
        answers = self.runner.folder / benchmark / f"{setting.name}.jsonl"
        last = self.runner.answer(task, data, examples, answers, setting.flags(), split)
        figures = task.figures(data, list(read_lines(answers)), answers.with_suffix(""), split)
        if last is not None:
            figures |= {
                "tokens": [last.visual_before[0], last.visual_after[0]],
                "mean_tokens": last.mean_visual_tokens[0],
            }
        return figures


def part_of(benchmark: str) -> tuple[tasks.Task, str | None]:
    """The task and the split that `task` or `task:split` names, None where it names none. Raises UserError."""
    name, _, split = benchmark.partition(":")
    task = tasks.get(name)
    if split and split not in task.splits:
        raise UserError(f"{name} has no split {split!r}; known: {', '.join(task.splits)}")
    return task, split or None


def _words(text: str) -> list[str]:
    words = list(dict.fromkeys(word for word in text.split(",") if word))
    if not words:
        raise argparse.ArgumentTypeError(f"expected names with commas between, got {text!r}")
    return words


def _numbers(text: str) -> list[int]:
    if not all(word.isdigit() and int(word) > 0 for word in _words(text)):
        raise argparse.ArgumentTypeError(f"expected whole numbers with commas between, got {text!r}")
    return [int(word) for word in _words(text)]


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    chooser = Parser(add_help=False, allow_abbrev=False)
    chooser.add_argument("--protocol", choices=("table", "vtc"), default="table", help="vtc: see docs/vtc.md")
    chosen, argv = chooser.parse_known_args(argv)
    if chosen.protocol == "vtc":
        vtc.main(argv)
        return
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, parents=[chooser])
    parser.add_argument("--ckpt", type=or_embedded, default=str(EMBEDDED_MODEL), help="checkpoint folder or hub name")
    parser.add_argument(
        "--data", type=or_embedded, default=str(EMBEDDED_DATA), help="folder that holds the benchmarks' folders"
    )
    parser.add_argument(
        "--benchmarks", type=_words, default="textvqa,pope,mme", help="names, or name:split for one part of a benchmark"
    )
    parser.add_argument("--keep", type=_numbers, default="192,128,64", help="budgets in visual tokens")
    parser.add_argument("--strategies", type=_words, default="dart,random,uniform", help="methods (docs/methods.md)")
    parser.add_argument("--pivot-orders", type=_words, default="original", help="of DART: original, norm")
    parser.add_argument("--seeds", type=count(1), default=1, help="runs of the random strategy")
    parser.add_argument("--blind", action="store_true", help="also ask with every image replaced by grey")
    parser.add_argument("--out", type=Path, help="the results' JSON file; tables are written beside it (.md, .html)")
    parser.add_argument("--overwrite", action="store_true", help="throw earlier results away")
    args, loop_flags = parser.parse_known_args(argv)
    for name in args.strategies:
        dart.strategies.get(name)
    for name in args.benchmarks:
        part_of(name)
    if unknown := [order for order in args.pivot_orders if order not in PIVOT_ORDERS]:
        raise UserError(f"--pivot-orders: unknown {', '.join(unknown)}; known: {', '.join(PIVOT_ORDERS)}")
    if Ranks.from_environment().count > 1:
        raise UserError(
            "the suite is one process; several share one benchmark: accelerate launch -m llava.eval.run ..."
        )
    out = args.out or Path("outputs", "suite") / f"{Path(args.ckpt).name}.json"
    if args.overwrite:
        out.unlink(missing_ok=True)
        loop_flags.append("--overwrite")
    settings = settings_of(args.strategies, args.keep, args.pivot_orders, list(range(args.seeds)), args.blind)
    suite = Suite(args.ckpt, lambda _: Path(args.data), out, out.parent / f"{out.stem}-answers", loop_flags)
    rows = list(settings)
    suite.cells(args.benchmarks, rows)
    asked = [f"{benchmark}/{setting.name}" for setting in rows for benchmark in args.benchmarks]
    lost = [key for key in asked if "error" in suite.results["cells"][key]]
    print(to_markdown(suite.results))
    print(json.dumps({"results": str(out), "cells": len(suite.results["cells"]), "not_run": len(lost)}))
    if lost:
        names = ", ".join(dict.fromkeys(key.split("/")[0] for key in lost))
        raise Unfinished(
            f"{len(lost)} of {len(asked)} runs have no score ({names}): the table says why; mend it and give the same "
            "command again, which keeps the others"
        )


if __name__ == "__main__":
    main()
