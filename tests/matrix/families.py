"""Every image-text-to-text model type of the installed transformers, pruned and compared with the reference.

python tests/matrix/families.py          writes docs/families.md
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
import zoo
from reference import kept_rows, longer, reference

import dart

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "families.md"
CONFIG = dart.DartConfig(keep=0.4, image_pivots=2, text_pivots=2)
SPECIAL = [zoo.IMAGE, zoo.VIDEO, zoo.AUDIO, zoo.START, zoo.END]
STEPS = 4
MISSING = "needs the package"  # in the reasons of families that this environment cannot make
CLOSE = 1e-3  # float32 logits of a few units, through as many as 14 layers
HEAD = """# Families

Made by `python tests/matrix/families.py`, from tiny random models of every model type that transformers {version}
maps to image-text-to-text. *Exact*: the logits of a pruned prompt with two images, and of {steps} tokens decoded after
it, are those of the unpruned model whose layers from K on may not look at the dropped tokens (largest difference of
float32 logits). A test holds this table and the code together. A family needs no file of its own for this; where one
differs, it has a short file in [dart/families](../dart/families).

{exact} of {all} model types are exact, {refused} are refused with their reason before anything is computed.

| model type | | K | difference |
|---|---|---|---|
"""


@dataclass
class Result:
    """reason: why dart refuses the family (empty: exact); layer: K; difference: to the reference."""

    reason: str = ""
    layer: int = 0
    difference: float | None = None


def refusal(model) -> str:
    """Why `dart.prune` refuses a model; empty where it does not."""
    try:
        dart.prune(model, CONFIG).remove()
    except (TypeError, ValueError) as error:
        return str(error)
    return ""


@torch.no_grad()
def compare(case, config=CONFIG, inputs=None) -> Result:
    """A pruned prompt, and decoding after it, against the reference."""
    inputs = inputs or case.inputs(images=2)
    length = inputs["input_ids"].shape[1]
    with dart.prune(case.model, config) as handle:
        logits = case.model(**inputs).logits[0]
        report = handle.last
        out = case.model.generate(
            **inputs, max_new_tokens=STEPS, suppress_tokens=SPECIAL, output_logits=True, return_dict_in_generate=True
        )
    assert report is not None and report.visual_after[0] < report.visual_before[0], "nothing was pruned"
    rows = kept_rows(inputs, case, report.kept[0])
    wanted = reference(case, inputs, {report.layer: rows})[rows]
    difference = float((logits - wanted).abs().max())
    answer = out.sequences[0, length:]
    whole = longer(inputs, case, answer[:-1])
    if whole is not None:
        rows = kept_rows(inputs, case, report.kept[0], STEPS - 1)
        wanted = reference(case, whole, {report.layer: rows})[-STEPS:]
        difference = max(difference, float((torch.stack(out.logits, 1)[0] - wanted).abs().max()))
    return Result("", report.layer, difference)


def result_of(name: str, attention: str = "sdpa") -> Result:
    """Raises AssertionError for a family that is neither exact nor refused."""
    case = zoo.make(name, attention)
    if case.skip:
        return Result(case.skip)
    if reason := refusal(case.model):
        return Result(reason.partition("): ")[2] or reason)
    result = compare(case)
    assert result.difference is not None and result.difference < CLOSE, (name, result)
    return result


def table(results: dict[str, Result]) -> str:
    exact = sum(not each.reason for each in results.values())
    head = HEAD.format(
        version=transformers.__version__, steps=STEPS, exact=exact, all=len(results), refused=len(results) - exact
    )
    rows = []
    for name, each in sorted(results.items()):
        if each.reason:
            rows.append(f"| {name} | refused: {each.reason} | | |")
        else:
            rows.append(f"| {name} | exact | {each.layer} | {each.difference:.0e} |")
    return head + "\n".join(rows) + "\n"


def main() -> None:
    logging.disable(logging.WARNING)
    names = [name for name in zoo.names() if ":" not in name]
    results = {name: result_of(name) for name in names}
    if missing := [f"{name}: {each.reason}" for name, each in results.items() if MISSING in each.reason]:
        raise SystemExit("error: install these first: " + "; ".join(missing))
    DOCUMENT.write_text(table(results))


if __name__ == "__main__":
    main()
