"""`--model_args` of the lmms-eval models, and the eval scripts' own checks; lmms-eval itself is not needed."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from lmms_eval_dart.arguments import CLEAN, ORIGINAL, split
from lmms_eval_dart.one_line import ends_in_one_line

from dart import DartConfig
from dart.utils import UserError

ROOT = Path(__file__).resolve().parents[1]
STOCK = ("pretrained", "batch_size", "max_pixels")
# The research code's own model_args, as lmms-eval reads them.
SCRIPT = {
    "pretrained": "Qwen/Qwen2-VL-7B-Instruct",
    "Sparse": True,
    "pruned_layer": 2,
    "image_token_start_index": 0,
    "image_token_length": 0,
    "max_num_trunction": 128,
    "reduction_ratio": 0.889,
    "pivot_image_token": 4,
    "pivot_text_token": 4,
}


def test_the_research_codes_arguments_mean_what_they_meant_on_qwen():
    dart, stock = split(SCRIPT, STOCK)
    assert dart.on and stock == {"pretrained": "Qwen/Qwen2-VL-7B-Instruct"}
    config = dart.config(ratio_first=True)
    assert config == DartConfig(reduction_ratio=0.889, pivot_order="original")
    # int(1000 * 0.111 / 8) = 13 for each of 8 pivots, and the 4 image pivots
    assert config.num_kept(1000) == 4 + 8 * 13


def test_on_llava_the_number_of_tokens_wins_and_on_llava_next_its_own():
    both = split(SCRIPT | {"retain_token_num_for_llava_next": 320}, STOCK)[0]
    assert both.config().num_kept(576) == 132
    assert both.config(anyres=True).num_kept(2880) == 324


def test_clean_names_are_dart_configs_fields():
    given = {"keep": 64, "layer": 3, "strategy": "random", "seed": 7, "scope": "joint", "exact": True, "batch_size": 2}
    dart, stock = split(given, STOCK)
    assert dart.config() == DartConfig(keep=64, layer=3, strategy="random", seed=7, scope="joint", exact=True)
    assert stock == {"batch_size": 2}
    assert split({"keep": 0.25}, STOCK)[0].config() == DartConfig(keep=0.25)
    assert split({}, STOCK)[0].config() == DartConfig()


def test_clean_names_beside_the_research_codes():
    dart, _ = split({"reduction_ratio": 0.5, "pivot_order": "norm", "strategy": "uniform", "layer": 1}, STOCK)
    assert dart.config(ratio_first=True) == DartConfig(reduction_ratio=0.5, strategy="uniform", layer=1)


def test_an_absent_budget_is_the_word_none():
    dart, _ = split(SCRIPT | {"reduction_ratio": "None"}, STOCK)
    assert dart.config(ratio_first=True).num_kept(1000) == 132


def test_sparse_false_prunes_nothing_but_its_arguments_are_still_checked():
    assert not split(SCRIPT | {"Sparse": False}, STOCK)[0].on
    with pytest.raises(UserError, match="strategy"):
        split({"Sparse": False, "strategy": "magic"}, STOCK)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"Sparse": "maybe"}, "Sparse must be True or False, got 'maybe'"),
        ({"Sparse": 1}, "Sparse must be True or False, got 1"),
        ({"reduction_ratio": 1.5}, r"reduction_ratio must be between 0 and 1 \(both excluded\), got 1.5"),
        ({"reduction_ratio": 0}, "reduction_ratio must be between 0 and 1"),
        ({"reduction_ratio": "half"}, "reduction_ratio must be a number, got 'half'"),
        ({"keep": -1}, "keep as a number of tokens must be 0 or more"),
        ({"pruned_layer": 2, "layer": 3}, "layer and pruned_layer are both given"),
        ({"keep": 64, "reduction_ratio": 0.5}, "keep and reduction_ratio are both given"),
        ({"keep": 64, "max_num_trunction": 128}, "keep and max_num_trunction are both given"),
        ({"pivot_order": "random"}, "pivot_order must be one of norm, original"),
    ],
)
def test_mistakes(given, message):
    with pytest.raises(UserError, match=message):
        split(given, STOCK)


def test_an_unknown_argument_is_answered_with_the_known_ones():
    with pytest.raises(UserError) as error:
        split({"sparse": True, "max_pixel": 3}, STOCK)
    text = str(error.value)
    assert text.startswith("model_args: unknown max_pixel, sparse;")
    for name in ("Sparse", *ORIGINAL, *CLEAN, *STOCK):
        assert name in text


def test_one_line_on_stderr_and_code_2(capsys):
    @ends_in_one_line
    def fails() -> None:
        raise UserError("no\nsuch thing")

    with pytest.raises(SystemExit) as end:
        fails()
    assert end.value.code == 2
    assert capsys.readouterr().err == "error: no such thing\n"


@pytest.mark.parametrize("folder", ["Qwen2-VL", "Qwen2_5-VL"])
@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        (["maybe"], {}, "Sparse must be True or False, got maybe"),
        (["True", "1.5"], {}, "Reduction_Ratio must be between 0 and 1 (both excluded), got 1.5"),
        (["True", "0"], {}, "Reduction_Ratio must be between 0 and 1 (both excluded), got 0"),
        (["True", "1"], {}, "Reduction_Ratio must be between 0 and 1 (both excluded), got 1"),
        (["True", "0.5"], {"ATTN": "fast", "MODEL": "."}, "ATTN must be flash_attention_2 or not set, got fast"),
    ],
)
def test_scripts_refuse_bad_arguments_in_one_line(folder, arguments, environment, message):
    script = ROOT / folder / "eval_scripts" / "lmms_eval.sh"
    done = subprocess.run(
        ["bash", script, *arguments], capture_output=True, text=True, env=os.environ | environment, cwd="/"
    )
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(f"error: {message}")
    assert "Traceback" not in done.stderr


FAKE_PYTHON = """#!/usr/bin/env bash
printf '%s\\n' "$@" >>"$RECORD"
while [ $# -gt 0 ]; do [ "$1" = --output_path ] && out=$2; shift; done
touch "$out/now_results.json"
"""


@pytest.fixture
def launched(tmp_path):
    """Run a script with a stand-in for Python; the words of its command."""
    python, record = tmp_path / "python", tmp_path / "record"
    python.write_text(FAKE_PYTHON)
    python.chmod(0o755)

    def run(folder: str, *arguments: str, **environment: str) -> list[str]:
        settings = {"PYTHON": str(python), "RECORD": str(record), "OUTPUT": str(tmp_path / "out"), **environment}
        script = ROOT / folder / "eval_scripts" / "lmms_eval.sh"
        subprocess.run(["bash", script, *arguments], check=True, env=os.environ | settings, capture_output=True)
        return record.read_text().splitlines()

    return run


def after(words: list[str], flag: str) -> str:
    return words[words.index(flag) + 1]


def test_a_script_on_four_gpus(launched):
    words = launched(
        "Qwen2-VL",
        "True",
        "0.889",
        MODEL="Qwen/Qwen2-VL-7B-Instruct",
        TASKS="mme,pope",
        BATCH_SIZE="4",
        CUDA_VISIBLE_DEVICES="0,1,2,5",
        ATTN="flash_attention_2",
    )
    assert words[:2] == ["-m", "accelerate.commands.launch"] and "--multi_gpu" in words and "--cpu" not in words
    assert after(words, "--num_processes") == "4"
    assert after(words, "--model") == "qwen2_vl_dart"
    assert after(words, "--tasks") == "mme,pope"
    assert after(words, "--batch_size") == "4"
    assert "--limit" not in words
    assert after(words, "--model_args") == (
        "pretrained=Qwen/Qwen2-VL-7B-Instruct,use_flash_attention_2=True,Sparse=True,pruned_layer=2,"
        "image_token_start_index=0,image_token_length=0,max_num_trunction=128,reduction_ratio=0.889,"
        "pivot_image_token=4,pivot_text_token=4"
    )


def test_a_script_without_gpus_and_unpruned(launched):
    words = launched("Qwen2_5-VL", "False", MODEL=".", CUDA_VISIBLE_DEVICES="", MODEL_ARGS="max_pixels=602112")
    assert "--cpu" in words and after(words, "--num_processes") == "1"
    assert after(words, "--model") == "qwen2_5_vl_dart"
    assert after(words, "--model_args") == "pretrained=.,max_pixels=602112,Sparse=False"
    assert "video_mini" in after(words, "--tasks") and after(words, "--limit") == "60"


def test_every_question_of_the_mini_tasks(launched):
    assert "--limit" not in launched("Qwen2-VL", "False", MODEL=".", LIMIT="all", CUDA_VISIBLE_DEVICES="")
