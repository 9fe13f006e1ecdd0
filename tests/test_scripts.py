"""scripts/v1_5/eval through bash, from another folder, on the recorded tiny checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MINI = ROOT / "playground" / "data" / "mini"
CHECKPOINT = ROOT / "tests" / "golden" / "ckpt" / "llava-v1.5-tiny"
LIMIT_SECONDS = 300
QUESTIONS = 3


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TextVQA's layout with the first three mini questions."""
    folder = tmp_path_factory.mktemp("data") / "textvqa"
    (folder / "train_images").mkdir(parents=True)
    source = MINI / "textvqa"
    shutil.copy(source / "TextVQA_0.5.1_val.json", folder)
    name = "llava_textvqa_val_v051_ocr.jsonl"
    lines = (source / name).read_text().splitlines(keepends=True)[:QUESTIONS]
    (folder / name).write_text("".join(lines))
    for line in lines:
        shutil.copy(source / "train_images" / json.loads(line)["image"], folder / "train_images")
    return folder.parent


def script(name: str, cwd: Path, *ratio: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("CKPT", "DATA", "OUT", "CUDA_VISIBLE_DEVICES")}
    command = ["bash", str(ROOT / "scripts" / "v1_5" / "eval" / f"{name}.sh"), *ratio]
    env = kept | {"PYTHON": sys.executable, "DEVICE": "cpu"} | environment
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=LIMIT_SECONDS)


def test_ratio_acts_and_two_processes_equal_one(data: Path, tmp_path: Path) -> None:
    place = {"CKPT": str(CHECKPOINT), "DATA": str(data)}
    one = script("textvqa", tmp_path, "0.778", OUT=str(tmp_path / "one"), **place)
    assert one.returncode == 0, one.stderr
    assert "576 -> 124" in one.stdout
    assert json.loads(one.stdout.splitlines()[-1])["samples"] == QUESTIONS
    two = script("textvqa", tmp_path, "0.778", OUT=str(tmp_path / "two"), CUDA_VISIBLE_DEVICES="0,1", **place)
    assert two.returncode == 0, two.stderr
    name = "llava-v1.5-tiny-dart-original-r0.778.jsonl"
    assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes()


def test_missing_and_half_installed_folders_are_named(data: Path, tmp_path: Path) -> None:
    result = script("pope", tmp_path, CKPT=str(CHECKPOINT), DATA=str(data), OUT=str(tmp_path / "out"))
    assert result.returncode == 2
    errors = result.stderr.strip().splitlines()
    assert len(errors) == 1 and str(data / "pope") in errors[0] and "coco (annotations)" in errors[0]
    assert "AoiDragon/POPE" in errors[0]


@pytest.mark.parametrize("name", ["textvqa", "pope", "mme"])
def test_every_script_says_what_it_runs_on_first(name: str, tmp_path: Path) -> None:
    # A bad ratio stops the run right after the first lines.
    result = script(name, tmp_path, "1.5", OUT=str(tmp_path / "out"))
    assert result.returncode == 2
    first, second = result.stdout.splitlines()[:2]
    assert "playground/models/llava-tiny" in first and "playground/data/mini" in second
    assert result.stderr.strip().startswith("error: --reduction_ratio") and "1.5" in result.stderr


def test_scripts_are_thin() -> None:
    for path in (ROOT / "scripts" / "v1_5" / "eval").glob("*.sh"):
        assert len(path.read_text().splitlines()) < 15, path
