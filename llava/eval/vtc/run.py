"""`python -m llava.eval.suite --protocol vtc`: answers what is not answered yet, or reads the answers of any model.

Per benchmark: the unpruned model and a blind one. Per benchmark and D: average pooling to ceil(H / D) x ceil(W / D)
tokens of each grid, whose realised number of tokens is the budget of all others; blurred images; random and evenly
spaced tokens; then the methods. Flags of the loop (--device, --batch-size, ...) pass through; an interrupted command
goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import dart
from dart import DartConfig
from dart.config import BUDGET_KINDS
from dart.records import check_regular
from dart.utils import Parser, UserError, exits_cleanly, one_line, provenance, write_json, write_text
from llava.eval import tasks
from llava.eval.engine.answers import read_lines
from llava.eval.engine.examples import Example
from llava.eval.engine.ranks import Ranks
from llava.eval.engine.runner import Runner
from llava.eval.engine.suite_table import BLIND, SEED
from llava.eval.vtc.groups import FILTER, ORIGINAL, RATIOS, TOLERANCE, Run, aligned, compare, tokens_of, vote
from llava.eval.vtc.read import judged, read_run
from llava.eval.vtc.table import POOLED, to_markdown
from llava.files import EMBEDDED_DATA, EMBEDDED_MODEL, or_embedded
from llava.model.anyres import is_anyres

POOL, BLUR, RANDOM, UNIFORM = "pooling", "blur", "random", "uniform"
VOTE = "vote"
DOWNSAMPLE = "downsample"
FILTERS = {DOWNSAMPLE: BLUR, "pool": POOL, RANDOM: f"{RANDOM}-filter"}  # -> the run that decides
CONTROLS = (RANDOM, UNIFORM, POOL, BLIND)
LABELS = {
    DOWNSAMPLE: "blurred images (deviation: the paper's smaller image, which LLaVA would enlarge again: no token less)",
    "pool": "pooling of the grid (deviation: the paper's filter is a smaller image)",
    RANDOM: "random tokens (not the paper's; a draw of its own)",
    VOTE: "2 of 3 of blur, pooling and random tokens (not the paper's)",
}
STRATEGIES, SEEDS = ["dart", "fastv", "divprune", "visionzip"], 3
MEAN, AFTER = "mean-over-layers", "after-layer"
SHARE_DIGITS = 9  # a ratio is rounded down to these: whole numbers of tokens stay whole


@dataclass(frozen=True)
class Method:
    """A row of the table. layer: K; kind: of what the budget is a number (`DartConfig.budget_kind`)."""

    strategy: str
    layer: int
    kind: str = MEAN
    seed: int = 0

    def config(self, share: float) -> DartConfig:
        return DartConfig(
            reduction_ratio=1 - share,
            layer=self.layer,
            strategy=self.strategy,
            exact=True,
            budget_kind=self.kind,
            seed=self.seed,
        )

    def flags(self, budget: Sequence[str]) -> list[str]:
        flags = ["--sparse", "--exact", "--scope", "span", "--pivot_order", "norm", "--strategy", self.strategy]
        flags += ["--pruned_layer", str(self.layer), "--budget_kind", self.kind, "--seed", str(self.seed)]
        return [*flags, *budget]


def methods_of(names: Sequence[str], kinds: Sequence[str], layers: int) -> dict[str, Method]:
    """Rows by name. names: NAME or NAME@K. A strategy that acts before the LLM has one kind of budget alone.

    Raises UserError for an unknown strategy or layer.
    """
    methods = {}
    for name in names:
        strategy, at, layer = name.partition("@")
        if at and not layer.isdigit():
            raise UserError(f"--strategies {name}: expected NAME or NAME@LAYER, such as dart@1")
        method = Method(strategy, int(layer) if at else DartConfig().layer)
        stages = dart.strategies.in_model(strategy).stages(method.config(1.0), layers)
        for kind in kinds if stages and stages[0].layer > 0 else kinds[:1]:
            label = name if kind == kinds[0] else f"{name} ({kind})"
            methods[label] = Method(strategy, method.layer, kind)
    return methods


def grid_share(model: Any, ratio: int) -> tuple[int, float]:
    """(tokens, share) that pooling of the tower's square grid by `ratio` per side, rounded up, leaves."""
    tower = model.get_vision_tower().tower.config
    side = tower.image_size // tower.patch_size
    return math.ceil(side / ratio) ** 2, (math.ceil(side / ratio) / side) ** 2


def budget_flags(run: Run) -> list[str]:
    """The tokens that the filter really left, as a budget: their number where all images have as many, or a share."""
    left = {answer.tokens for answer in run.values()}
    count = left.pop()
    return ["--max_num_trunction", str(round(count))] if not left and count else share_flags(realised_share(run) or 1.0)


def share_flags(share: float) -> list[str]:
    ratio = math.floor((1 - share) * 10**SHARE_DIGITS) / 10**SHARE_DIGITS
    return ["--reduction_ratio", f"{ratio:.{SHARE_DIGITS}f}"]


def realised_share(run: Run) -> float | None:
    """Tokens left of those the images had; None where they were not counted."""
    counts = [(answer.tokens, answer.before) for answer in run.values()]
    if any(left is None or not before for left, before in counts):
        return None
    return sum(left or 0 for left, _ in counts) / sum(before or 0 for _, before in counts)


def limited(examples: Sequence[Example], limit: int | None) -> Sequence[Example]:
    """`limit` of the examples, evenly spaced."""
    count = len(examples)
    return examples if limit is None or limit >= count else [examples[k * count // limit] for k in range(limit)]


class Protocol:
    """Runs of one checkpoint on one benchmark after the other. data_of: the folder that holds a benchmark's folder."""

    def __init__(self, runner: Runner, data_of: Callable[[str], Path], limit: int | None, seeds: int):
        self.runner, self.data_of, self.limit, self.seeds = runner, data_of, limit, seeds
        self.answered = cache(self._answered)

    def _answered(self, benchmark: str, name: str, flags: tuple[str, ...]) -> Run:
        """The answers of one run, finished."""
        print(f"--- {benchmark}/{name}", flush=True)
        task, data = tasks.get(benchmark), self.data_of(benchmark)
        folder = self.runner.folder / (benchmark if self.limit is None else f"{benchmark}-{self.limit}")
        examples = limited(task.examples(data), self.limit)
        answers = folder / f"{name.replace(' ', '-')}.jsonl"
        self.runner.answer(task, data, examples, answers, flags)
        return judged(benchmark, data, list(read_lines(answers)))

    def runs(
        self, benchmark: str, ratio: int, filters: Sequence[str], methods: Mapping[str, Method]
    ) -> tuple[dict[str, Run], dict[str, str]]:
        """(name -> run, name -> why there is none).

        Raises UserError where the model cannot be pooled and one of the filters needs it.
        """
        model = self.runner.loaded.model
        runs: dict[str, Run] = {}
        not_run: dict[str, str] = {}

        def run(name: str, *flags: str) -> Run:
            runs[name] = self.answered(benchmark, name if name in (ORIGINAL, BLIND) else f"{name}-D{ratio}", flags)
            return runs[name]

        def attempt(name: str, method: Method, budget: Sequence[str], share: float) -> None:
            try:
                dart.prune(model, method.config(share)).remove()
                run(name, *method.flags(budget))
            except (UserError, ValueError) as error:
                print(f"not run: {one_line(error)}", flush=True)
                not_run[name] = one_line(error)

        count, share = grid_share(model, ratio)
        budget = share_flags(share) if is_anyres(model.config) else ["--max_num_trunction", str(count)]
        attempt(POOL, Method(POOL, 0), budget, share)
        if POOL in runs:
            budget, share = budget_flags(runs[POOL]), realised_share(runs[POOL]) or 1.0
        elif needing := {"pool", VOTE} & set(filters):
            raise UserError(f"--filter {needing.pop()}: {not_run[POOL]}; choose --filter {RANDOM} or {DOWNSAMPLE}")
        run(ORIGINAL)
        run(BLIND, "--blind")
        counted = run(FILTERS[RANDOM], *Method(RANDOM, 0, seed=self.seeds).flags(budget))
        for seed in range(self.seeds):
            run(f"{RANDOM}-seed{seed}", *Method(RANDOM, 0, seed=seed).flags(budget))
        run(UNIFORM, *Method(UNIFORM, 0).flags(budget))
        soft = run(BLUR, "--blur", str(ratio))
        runs[BLUR] = {key: answer._replace(tokens=counted[key].before) for key, answer in soft.items()}
        for name, method in methods.items():
            attempt(name, method, budget, share)
        return runs, not_run

    def blocks(
        self, benchmarks: Sequence[str], ratio: int, filters: Sequence[str], methods: Mapping[str, Method]
    ) -> Iterator[dict[str, Any]]:
        """The figures of every benchmark and filter, and of all benchmarks together."""
        together: dict[str, Run] = {}
        not_run: dict[str, str] = {}
        for number, benchmark in enumerate(benchmarks):
            runs, failed = self.runs(benchmark, ratio, filters, methods)
            yield from self._blocks(benchmark, ratio, filters, runs, failed)
            together = {
                name: {**together.get(name, {}), **run} for name, run in runs.items() if number == 0 or name in together
            }
            not_run |= failed
        if len(benchmarks) > 1:
            yield from self._blocks(POOLED, ratio, filters, together, not_run)

    def _blocks(
        self, benchmark: str, ratio: int, filters: Sequence[str], runs: Mapping[str, Run], not_run: Mapping[str, str]
    ) -> Iterator[dict[str, Any]]:
        budget = tokens_of(runs.get(POOL, runs[FILTERS[RANDOM]]))
        for name in filters:
            deciders = [FILTERS[each] for each in (FILTERS if name == VOTE else [name])]
            discriminator = vote([runs[each] for each in deciders]) if name == VOTE else runs[deciders[0]]
            others = {
                key: run for key, run in runs.items() if key != FILTERS[RANDOM] and (name == VOTE or key != deciders[0])
            }
            yield block_of(benchmark, ratio, LABELS[name], others, discriminator, budget, not_run)


def block_of(
    benchmark: str,
    ratio: int,
    label: str,
    runs: Mapping[str, Run],
    discriminator: Run,
    budget: float | None,
    not_run: Mapping[str, str],
) -> dict[str, Any]:
    """One table. runs: without the filter's; those of several seeds, NAME-seedN, become one row."""
    seeds: dict[str, list[Run]] = {}
    for name, run in runs.items():
        seeds.setdefault(SEED.sub("", name), []).append(run)
    head = {"benchmark": benchmark, "ratio": ratio, "filter": label, "share": realised_share(discriminator)}
    return {**head, **compare(seeds, discriminator, budget), "not_run": dict(not_run)}


def read_blocks(
    answers: Mapping[str, str], tokens: Mapping[str, float], benchmark: str | None, data: Path, ratio: int
) -> dict[str, Any]:
    """The results for answers that are there already. answers: name -> file or folder, several with + in between."""
    paths = {name: [Path(part) for part in text.split("+")] for name, text in answers.items()}
    if several := [name for name, files in paths.items() if len(files) > 1 and name != FILTER]:
        raise UserError(
            f"--answers {several[0]}: only {FILTER} may have several files (a vote); name seeds NAME-seed0, ..."
        )
    if len(paths[FILTER]) not in (1, 3):
        raise UserError(
            f"--answers {FILTER}: expected one file, or three for a vote of 2 of 3, got {len(paths[FILTER])}"
        )
    found = {f"{name}+{k}" if k else name: path for name, files in paths.items() for k, path in enumerate(files)}
    runs, notes = aligned({name: read_run(path, benchmark, data) for name, path in found.items()})
    filters = [runs.pop(name) for name in found if name.partition("+")[0] == FILTER]
    discriminator = filters[0] if len(filters) == 1 else vote(filters)
    counted = {name: _with_tokens(run, tokens.get(name)) for name, run in runs.items()}
    discriminator = _with_tokens(discriminator, tokens.get(FILTER))
    if lost := [name for name in CONTROLS if not any(run.startswith(name) for run in runs)]:
        notes.append(
            f"no row {', '.join(lost)}: what a method without a look at the image, or a blind one, gets in A is open"
        )
    by_filter, tested = _models(filters), _models(runs.values())
    if len({*by_filter, *tested}) > 1:
        notes.append("answers of several models: the groups should be the tested model's own")
    if unknown := [name for name, run in {FILTER: discriminator, **counted}.items() if _uncounted(name, run)]:
        notes.append(
            f"visual tokens of {', '.join(unknown)} were not counted: equal budgets are not checked (--tokens)"
        )
    share = realised_share(discriminator)
    if share is not None and abs(share * ratio**2 - 1) > TOLERANCE:
        notes.append(
            f"the filter left {100 * share:.2f} % of the tokens where D = {ratio} means {100 / ratio**2:.2f} %"
        )
    names = list(dict.fromkeys(key[0] for key in discriminator))
    blocks = []
    for name in [*names, POOLED] if len(names) > 1 else names:
        of_name = [
            {key: a for key, a in run.items() if name in (POOLED, key[0])} for run in (discriminator, *counted.values())
        ]
        own = dict(zip(counted, of_name[1:], strict=True))
        label = f"the filter's answers ({answers[FILTER]})"
        blocks.append(block_of(name, ratio, label, own, of_name[0], tokens_of(of_name[0]), {}))
    return {
        "filter_model": ", ".join(by_filter) or answers[FILTER],
        "tested_model": ", ".join(tested) or answers[ORIGINAL],
        "notes": notes,
        "blocks": blocks,
    }


def _models(runs: Iterable[Run]) -> list[str]:
    """Who answered, where the files tell."""
    return sorted({answer.model for run in runs for answer in run.values() if answer.model})


def _uncounted(name: str, run: Run) -> bool:
    return name not in (ORIGINAL, BLIND) and tokens_of(run) is None


def _with_tokens(run: Run, mean: float | None) -> Run:
    return run if mean is None else {key: answer._replace(tokens=mean) for key, answer in run.items()}


def _words(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def _pairs(text: str) -> dict[str, str]:
    pairs = [word.partition("=") for word in _words(text)]
    if not pairs or any(not name or not value for name, _, value in pairs):
        raise argparse.ArgumentTypeError(f"expected NAME=VALUE with commas between, got {text!r}")
    if len({name for name, *_ in pairs}) < len(pairs):
        raise argparse.ArgumentTypeError(f"a name is given twice in {text!r}")
    return {name: value for name, _, value in pairs}


def _counts(text: str) -> dict[str, float]:
    try:
        return {name: float(value) for name, value in _pairs(text).items()}
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"expected NAME=NUMBER with commas between, got {text!r}") from error


def _ratios(text: str) -> list[int]:
    if not _words(text) or any(not word.isdigit() or int(word) not in RATIOS for word in _words(text)):
        raise argparse.ArgumentTypeError(f"expected some of {', '.join(map(str, RATIOS))}, got {text!r}")
    return [int(word) for word in _words(text)]


def _some_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    def parse(text: str) -> list[str]:
        if not _words(text) or not set(_words(text)) <= set(known):
            raise argparse.ArgumentTypeError(f"expected some of {', '.join(known)}, got {text!r}")
        return _words(text)

    return parse


def parser() -> argparse.ArgumentParser:
    made = Parser(
        prog="suite --protocol vtc", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--ckpt", type=or_embedded, default=str(EMBEDDED_MODEL), help="checkpoint folder or hub name")
    made.add_argument(
        "--data", type=or_embedded, default=str(EMBEDDED_DATA), help="folder that holds the benchmarks' folders"
    )
    made.add_argument("--benchmarks", type=_words, help="default: textvqa,pope,mme")
    made.add_argument("--filter", type=_some_of([*FILTERS, VOTE]), default=["pool"], help="one or more, commas between")
    made.add_argument("--ratio", type=_ratios, required=True, help="D: images are D times smaller per side")
    made.add_argument("--strategies", type=_words, default=STRATEGIES, help="NAME or NAME@LAYER, commas between")
    made.add_argument(
        "--budget-kinds",
        type=_some_of(BUDGET_KINDS[:2]),
        default=[MEAN],
        help="of what the methods' budget is a number",
    )
    made.add_argument("--seeds", type=int, default=SEEDS, help="runs of the random control")
    made.add_argument("--limit", type=int, help="questions of each benchmark, evenly spaced")
    made.add_argument("--answers", type=_pairs, help="original=FILE,filter=FILE,NAME=FILE,...: nothing is run")
    made.add_argument("--tokens", type=_counts, default={}, help="NAME=MEAN,...: visual tokens, where files lack them")
    made.add_argument("--out", type=Path, help="the results' JSON file; a table is written beside it (.md)")
    made.add_argument("--overwrite", action="store_true", help="throw earlier answers away")
    return made


def save(out: Path, results: dict[str, Any]) -> None:
    write_json(out, results)
    write_text(out.with_suffix(".md"), to_markdown(results))


def measure(protocol: Protocol, out: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run everything and write the results after each ratio. args: of `parser`.

    Raises UserError, before anything is run, for a benchmark that is not there or whose single answers have no score.
    """
    runner = protocol.runner
    for benchmark in args.benchmarks:
        data = protocol.data_of(benchmark)
        tasks.get(benchmark).examples(data)
        judged(benchmark, data, [])
    name = f"{runner.loaded.name} ({runner.digest[:12]})"
    results: dict[str, Any] = {"filter_model": name, "tested_model": name, "notes": [], "blocks": []} | provenance()
    methods = methods_of(args.strategies, args.budget_kinds, runner.loaded.model.config.num_hidden_layers)
    for ratio in args.ratio:
        results["blocks"] += protocol.blocks(args.benchmarks, ratio, args.filter, methods)
        save(out, results)
    return results


def check(args: argparse.Namespace, loop_flags: Sequence[str]) -> None:
    """Raises UserError for what can be refused before anything is computed."""
    for flag in ("seeds", "limit"):
        if (value := getattr(args, flag)) is not None and value < 1:
            raise UserError(f"--{flag} must be 1 or more, got {value}")
    for name in args.benchmarks or []:
        tasks.get(name)
    if Ranks.from_environment().count > 1:
        raise UserError("the suite is one process; run it without accelerate launch")
    if args.answers is None:
        if args.tokens:
            raise UserError("--tokens is for --answers: what is run here is counted")
        for name in args.strategies:
            dart.strategies.in_model(name.partition("@")[0])
        return
    if loop_flags:
        raise UserError(f"{loop_flags[0]} is a flag of a run, and --answers runs nothing: leave it out")
    if lost := [name for name in (ORIGINAL, FILTER) if name not in args.answers]:
        raise UserError(f"--answers lacks {' and '.join(lost)}: expected original=FILE,filter=FILE,NAME=FILE,...")
    if unknown := [name for name in args.tokens if name not in args.answers]:
        raise UserError(f"--tokens names {unknown[0]}, which --answers does not; known: {', '.join(args.answers)}")
    if len(args.ratio) > 1:
        raise UserError("--answers are of one ratio: give one --ratio")
    if args.benchmarks is not None and len(args.benchmarks) > 1:
        raise UserError("--answers are of one benchmark: give one of --benchmarks (lmms-eval's files name theirs)")


@exits_cleanly
def main(argv: Sequence[str] | None = None) -> None:
    args, loop_flags = parser().parse_known_args(argv)
    check(args, loop_flags)
    if args.out is not None:
        check_regular(args.out)
    if args.answers is None:
        args.benchmarks = args.benchmarks or ["textvqa", "pope", "mme"]
        out = args.out or Path("outputs", "suite") / f"vtc-{Path(args.ckpt).name}.json"
        runner = Runner(args.ckpt, out.parent / f"{out.stem}-answers", [*loop_flags, *["--overwrite"] * args.overwrite])
        results = measure(Protocol(runner, lambda _: Path(args.data), args.limit, args.seeds), out, args)
    else:
        out = args.out or Path("outputs", "suite", "vtc-answers.json")
        benchmark = args.benchmarks[0] if args.benchmarks else None
        found = read_blocks(args.answers, args.tokens, benchmark, Path(args.data), args.ratio[0])
        results = found | provenance()
        save(out, results)
    print(to_markdown(results))
    print(json.dumps({"results": str(out), "blocks": len(results["blocks"])}))
