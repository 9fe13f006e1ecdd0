"""scripts/demo.py as a command, on three questions and the recorded tiny checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from dart.viz import CELL_PX

ROOT = Path(__file__).resolve().parents[1]
MINI = ROOT / "playground" / "data" / "mini" / "textvqa"
CHECKPOINT = ROOT / "tests" / "golden" / "ckpt" / "llava-v1.5-tiny"
QUESTIONS = 3
LIMIT_SECONDS = 300


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """TextVQA's layout with the first mini questions."""
    folder = tmp_path_factory.mktemp("data") / "textvqa"
    (folder / "train_images").mkdir(parents=True)
    shutil.copy(MINI / "TextVQA_0.5.1_val.json", folder)
    name = "llava_textvqa_val_v051_ocr.jsonl"
    lines = (MINI / name).read_text().splitlines(keepends=True)[:QUESTIONS]
    (folder / name).write_text("".join(lines))
    for line in lines:
        shutil.copy(MINI / "train_images" / json.loads(line)["image"], folder / "train_images")
    return folder.parent


def demo(cwd: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in ("CKPT", "DATA", "OUT", "CUDA_VISIBLE_DEVICES")}
    env |= {"PYTHON": sys.executable, "PYTHONPATH": str(ROOT), "DEVICE": "cpu"}
    command = [sys.executable, str(ROOT / "scripts" / "demo.py"), *flags]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, timeout=LIMIT_SECONDS)


def test_demo_ends_with_its_figures_and_saves_the_picture(data: Path, tmp_path: Path) -> None:
    result = demo(tmp_path, "--ckpt", str(CHECKPOINT), "--data", str(data), "--out", str(tmp_path / "demo"))
    assert result.returncode == 0, result.stderr
    assert "$ bash scripts/v1_5/eval/textvqa.sh 0.778 128" in result.stdout
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["vision_tokens"] == "576 -> 132"
    assert figures["prefill_ms_unpruned"] > 0 and figures["prefill_ms_dart"] > 0
    for name in ("accuracy_unpruned", "accuracy_dart"):
        assert 0 <= figures[name] <= 100
    assert figures["picture"] == str(Path("demo", "kept_patches.png"))
    with Image.open(tmp_path / figures["picture"]) as picture:
        assert picture.size == (24 * CELL_PX, 24 * CELL_PX)
    answers = sorted((tmp_path / "demo" / "textvqa").glob("*.jsonl"))
    assert [len(path.read_text().splitlines()) for path in answers] == [QUESTIONS, QUESTIONS]


def test_a_failing_benchmark_is_named(tmp_path: Path) -> None:
    result = demo(tmp_path, "--ckpt", str(CHECKPOINT), "--data", str(tmp_path), "--out", str(tmp_path / "demo"))
    assert result.returncode == 2
    first, last = result.stderr.strip().splitlines()
    assert "benchmark folder" in first and str(tmp_path / "textvqa") in first
    assert last == "error: scripts/v1_5/eval/textvqa.sh ended with code 2; its message is above"
