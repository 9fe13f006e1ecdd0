"""The table of docs/results/qwen-tiny.json: from lmms-eval's report and a run's last line to the README."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lmms_eval_dart.tally import Tally

from dev.results import qwen_tiny
from dev.results.qwen_table import SCORES, qwen_table


def tally(*reports: tuple[list[int], list[int], list[float]]) -> Tally:
    """A tally after a model's calls; each report is of one prefill, and a decoding step follows it."""
    model, handle = torch.nn.Identity(), SimpleNamespace(config=SimpleNamespace(strategy="dart", layer=2), last=None)
    counted: Any = Tally(model, handle)  # type: ignore[arg-type]
    for before, after, mean in reports:
        handle.last = SimpleNamespace(visual_before=before, visual_after=after, mean_visual_tokens=mean)
        model(0)
        model(0)
    return counted


def report(**scores: float) -> dict[str, Any]:
    results: dict[str, Any] = {}
    for task, (_, metric, _) in SCORES.items():
        results[task] = {"alias": task, f"{metric},none": scores[task], f"{metric}_stderr,none": "N/A"}
    counts = {task: {"original": 240, "effective": 60} for task in SCORES}
    return {"results": results, "n-samples": counts}


WHOLE = dict.fromkeys(SCORES, 0.8) | {"mme_mini": 900.0}
HALF = dict.fromkeys(SCORES, 0.4) | {"mme_mini": 450.0}


def test_a_tally_counts_every_sample_once():
    counted = tally(([256, 264], [28, 36], [104.0, 112.0]), ([512], [60], [211.0]))
    assert counted.samples == 3
    assert "344.0 -> 41.3 visual tokens per sample from layer 2, 142.3 as a mean" in counted.summary()
    assert "no sample" in tally().summary()


def test_a_removed_tally_counts_no_more():
    model, handle = torch.nn.Identity(), SimpleNamespace(config=None, last=None)
    counted: Any = Tally(model, handle)  # type: ignore[arg-type]
    counted.remove()
    handle.last = SimpleNamespace(visual_before=[1], visual_after=[1], mean_visual_tokens=[1.0])
    model(0)
    assert counted.samples == 0


def test_figures_are_read_from_the_report_and_the_tally():
    printed = f"== qwen\n{tally(([256], [28], [104.0])).summary()}\n| table |\n"
    figures = qwen_tiny.figures_of(report(**WHOLE), printed)
    assert figures["tokens"] == [256.0, 28.0] and figures["mean_tokens"] == 104.0
    assert figures["tasks"]["pope_mini"] == {"pope_f1_score": 0.8}
    assert figures["questions"]["video_mini"] == 60
    assert "tokens" not in qwen_tiny.figures_of(report(**WHOLE), "unpruned")


def test_the_table_has_a_block_for_each_ratio_and_averages_seeds():
    settings = [vars(each) for each in qwen_tiny.settings_of(2)]
    runs = {"qwen2_vl/unpruned": qwen_tiny.figures_of(report(**WHOLE), "")}
    printed = tally(([256], [28], [104.0])).summary()
    runs["qwen2_vl/dart-0.889"] = qwen_tiny.figures_of(report(**HALF), printed)
    for seed, scores in enumerate((WHOLE, HALF)):
        runs[f"qwen2_vl/random-0.889-seed{seed}"] = qwen_tiny.figures_of(report(**scores), "")
    facts: dict[str, Any] = {
        "lmms_eval": "0.7.3",
        "commit": "c",
        "date": "d",
        "hardware": "h",
        "command": "x",
        "checkpoints_sha256": {"qwen2_vl": "0" * 64},
    }
    table = qwen_table({"settings": settings, "runs": runs, **facts})
    assert "*Qwen2-VL, 0.889 dropped: 256 -> 28 tokens, 104 over all layers*" in table
    assert "| unpruned | 80.0 | 80.0 | 900.0 | 80.0 | 80.0 | 100.0 % |" in table
    assert "| dart-0.889 | 40.0 | 40.0 | 450.0 | 40.0 | 40.0 | 50.0 % |" in table
    assert "| random-0.889 | 60.0 ±20.0 | 60.0 ±20.0 | 675.0 ±225.0 | 60.0 ±20.0 | 60.0 ±20.0 | 75.0 % |" in table
    assert "| uniform-0.889 | - | - | - | - | - | - |" in table
    assert "Qwen2.5-VL" not in table


def test_settings_reach_the_script():
    by_name = {each.name: each for each in qwen_tiny.settings_of(1)}
    assert by_name["unpruned"].model_args() == qwen_tiny.PIXELS
    assert by_name["random-0.778-seed0"].model_args() == f"{qwen_tiny.PIXELS},strategy=random,seed=0"
    assert len(by_name) == 1 + 3 * len(qwen_tiny.RATIOS)


@pytest.mark.parametrize("family", qwen_tiny.FOLDERS)
def test_the_embedded_models_pixels_are_the_checkpoints_own(family):
    config = qwen_tiny.read_json(qwen_tiny.checkpoint_of(family) / "preprocessor_config.json")
    assert f"min_pixels={config['min_pixels']},max_pixels={config['max_pixels']}" == qwen_tiny.PIXELS
    assert f"TINY_PIXELS={qwen_tiny.PIXELS}" in (qwen_tiny.ROOT / "scripts" / "lib" / "lmms.sh").read_text()
