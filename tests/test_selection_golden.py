"""`dart.select` against every recorded call of the research code's selection."""

from __future__ import annotations

import pytest
import torch
from conftest import selection_cases

import dart

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
FAMILIES = ("llava", "qwen2_vl", "qwen2_5_vl")
CASES = [(family, case) for family in FAMILIES for case in selection_cases(family)]

# Labelled deviations: a budget at or above the picture's length keeps the whole picture, where the
# original drops a few tokens all the same; a ratio above 1 is an error.
WHOLE_PICTURE = {"llava-125", "llava-126", "llava-164"}


def config_of(family: str, case: dict) -> dart.DartConfig:
    mapping = {
        "pivot_image_token": case["pivot_image"],
        "pivot_text_token": case["pivot_text"],
        "reduction_ratio": case["reduction_ratio"],
        "max_num_trunction": case["max_num_trunction"] if family == "llava" else None,
        "retain_token_num_for_llava_next": case["retain_token_num_for_llava_next"],
    }
    return dart.DartConfig.from_original(mapping, anyres=case["text_length"] is not None)


def hidden_of(inputs: dict, case: dict) -> torch.Tensor:
    hidden = inputs[case["input"] + ".hidden"][0].to(DTYPES[case["dtype"]])
    return hidden[: case["seq"]] if case["seq"] else hidden


def visual_length(case: dict) -> int:
    """Visual tokens that exist: some recorded calls name a range beyond the end of the sequence."""
    if case["text_length"] is not None:
        return case["seq_len"] - case["text_length"]
    return max(0, min(case["length"], case["seq_len"] - case["start"]))


def run(inputs: dict, case: dict, config: dart.DartConfig, **options: object) -> torch.Tensor:
    hidden = hidden_of(inputs, case)
    keys = inputs[case["input"] + ".keys"][0].to(hidden.dtype).repeat_interleave(case["repeat_kv"], 0)
    mask = torch.zeros(len(hidden), dtype=torch.bool)
    mask[case["start"] : case["start"] + visual_length(case)] = True
    return dart.select(hidden, keys[:, : len(hidden)], mask, config, **options)


@pytest.mark.parametrize(("family", "case"), [pytest.param(f, c, id=c["id"]) for f, c in CASES])
def test_recorded_case(family: str, case: dict, selection_inputs: dict) -> None:
    budgets = [case["reduction_ratio"], 1 - case["reduction_ratio"]]
    budgets += [case["max_num_trunction"] or 0] if family == "llava" else []
    if min(budgets) < 0 or case["pivot_image"] + case["pivot_text"] == 0:
        with pytest.raises(ValueError, match="reduction_ratio|keep|at least one pivot"):
            config_of(family, case)
        return
    config = config_of(family, case)
    kept = run(selection_inputs, case, config).tolist()
    length = visual_length(case)
    if case["id"] in WHOLE_PICTURE:
        assert kept == list(range(case["start"], case["start"] + length))
    elif case.get("exception"):
        texts = len(hidden_of(selection_inputs, case)) - case["start"] - length
        assert kept == sorted(set(kept))
        assert len(kept) == config.num_kept(length, texts)
    else:
        assert kept == case["retained"]
        assert len(kept) == config.num_kept(length)


@pytest.mark.parametrize("family", FAMILIES)
def test_most_recorded_cases_have_an_answer(family: str) -> None:
    """The loop above compares sets in most of its rounds, not exceptions."""
    cases = selection_cases(family)
    assert sum(not case.get("exception") for case in cases) > 80


@pytest.mark.parametrize("case", [c for c in selection_cases("llava")[:40] if not c.get("exception")])
def test_forced_pivots_in_recorded_order_give_the_recorded_set(case: dict, selection_inputs: dict) -> None:
    config = dart.DartConfig(keep=case["topk"] * 8, pivot_order="original")
    if case["text_length"] is None and case["pivot_image"] == case["pivot_text"] == 4 and case["topk"]:
        kept = run(selection_inputs, case, config, pivots=case["pivot_order"])
        assert kept.tolist() == case["retained"]
