"""The tables of docs/epic.md from docs/results/epic-llava-tiny*.json: `python -m dev.results.epic_table`."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from functools import partial
from statistics import mean, stdev
from typing import Any

from dart.utils import exits_cleanly, write_text
from dev.results.beyond import SEEDS
from dev.results.beyond_table import difference
from dev.results.epic import KEEP, SET_NAMES, STEPS, STRATEGIES, UNTRAINED, WAYS
from dev.results.render import RESULTS_FOLDER
from dev.results.speed import DOCS, replaced
from llava.eval.engine.suite_table import markdown
from llava.files import read_json

PAGE = DOCS / "epic.md"
NAMES = {"textvqa": "TextVQA", "pope": "POPE"}

Answers = Mapping[tuple[str, str, str, str], str]  # (way, seed, set, strategy and budget) -> marks of all samples


def answers_of(results: Mapping[str, Any]) -> Answers:
    found: dict[tuple[str, str, str, str], str] = defaultdict(str)
    for key in sorted(results["cells"]):
        way, seed, name, _, label = key.split("/")
        found[way, seed, name, label] += results["cells"][key]["right"]
    whole = results["limit"] * len(SEEDS)
    return {key: marks for key, marks in found.items() if len(marks) == whole}


def shares(answers: Answers, way: str, name: str, label: str) -> list[float]:
    """Percent right of every seed of a way of training."""
    seeds = sorted({seed for known, seed, *_ in answers if known == way})
    marks = [answers[way, seed, name, label] for seed in seeds if (way, seed, name, label) in answers]
    return [100 * each.count("1") / len(each) for each in marks]


def cell(values: list[float]) -> str:
    if not values:
        return "-"
    return f"{mean(values):.1f}" + (f" ±{stdev(values):.1f}" if len(values) > 1 else "")


def accuracy(answers: Answers, strategy: str) -> str:
    asked = {label for *_, label in answers}
    labels = ["all", *(label for keep in KEEP if (label := f"{strategy}-{keep}") in asked)]
    heads = ["trained", *(f"{NAMES[name]} {label.rpartition('-')[2]}" for name in SET_NAMES for label in labels)]
    body = []
    for way in (UNTRAINED, *WAYS):
        row = [cell(shares(answers, way, name, label)) for name in SET_NAMES for label in labels]
        if set(row) != {"-"}:
            body.append([way, *row])
    return "\n".join(markdown(heads, body))


def recovered(answers: Answers, base: str) -> str:
    """What a way of training gives back of what dropping tokens takes from the model `base`."""
    trained, body = {way for way, *_ in answers}, []
    for keep in KEEP:
        for way in WAYS:
            if way in trained - {base}:
                cells = [_gain(answers, way, base, name, f"dart-{keep}") for name in SET_NAMES]
                body.append([f"{keep}", way, *cells])
    return "\n".join(markdown(["tokens", "trained", *(NAMES[name] for name in SET_NAMES)], body))


def _gain(answers: Answers, way: str, base: str, name: str, label: str) -> str:
    seeds = sorted({seed for known, seed, each, of in answers if (known, each, of) == (way, name, label)})
    if base != UNTRAINED:
        seeds = [seed for seed in seeds if (base, seed, name, label) in answers]
    origins = ["0"] * len(seeds) if base == UNTRAINED else seeds
    if not seeds or any((base, seed, name, each) not in answers for seed in origins for each in ("all", label)):
        return "-"
    ours = "".join(answers[way, seed, name, label] for seed in seeds)
    theirs, whole = ("".join(answers[base, seed, name, each] for seed in origins) for each in (label, "all"))
    lost = 100 * (whole.count("1") - theirs.count("1")) / len(whole)
    gain, low, high = (100 * each for each in difference(ours, theirs))
    share = f", {gain / lost:.0%}" if lost > 0 else ""
    return f"{gain:+.1f} ({low:+.1f} to {high:+.1f}) of {lost:.1f}{share}"


def origin(results: Mapping[str, Any]) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in results["versions"].items())
    asked = results["limit"] * len(SEEDS)
    seeds = len({seed for _, seed, *_ in answers_of(results)})
    flags = "" if results["steps"] == STEPS else f" --steps {results['steps']} --rate {results['rate']:g}"
    over = "one seed" if seeds == 1 else f"deviation over {seeds} seeds"
    return (
        f"{asked} questions of each set, {results['steps']} steps of {results['batch']} rows at a rate "
        f"of {results['rate']:g}, {over} of data and training. Commit {results['commit']}, "
        f"{results['date']}; {results['hardware']}; {versions}. Commands: `python -m dev.results.epic train{flags}`, "
        f"`{results['command']}`"
    )


def tables(results: Mapping[str, Any], prefix: str) -> dict[str, Callable[[], str]]:
    """marker -> table of a file of results."""
    answers = answers_of(results)
    asked = {label.rpartition("-")[0] for *_, label in answers}
    others = [name for name in STRATEGIES if name != "dart" and name in asked]
    return {
        f"{prefix}-accuracy": partial(accuracy, answers, "dart"),
        f"{prefix}-recovered": partial(recovered, answers, UNTRAINED),
        f"{prefix}-control": partial(recovered, answers, "plain"),
        f"{prefix}-others": lambda: "\n\n".join(f"{name}:\n\n{accuracy(answers, name)}" for name in others),
        f"{prefix}-origin": partial(origin, results),
    }


@exits_cleanly
def main() -> None:
    text = PAGE.read_text()
    short = tables(read_json(RESULTS_FOLDER / "epic-llava-tiny.json"), "epic")
    long = tables(read_json(RESULTS_FOLDER / "epic-llava-tiny-1000-steps.json"), "epic-long")
    del long["epic-long-others"]
    for name, part in (short | long).items():
        text = replaced(text, name, part)
    write_text(PAGE, text)


if __name__ == "__main__":
    main()
