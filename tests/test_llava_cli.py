"""The commands as a user types them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from llava_golden import CHECKPOINT, GOLDEN

ROOT = Path(__file__).parents[1]
PICTURE = str(GOLDEN / "images" / "llava15.png")
MODEL = ("--model-path", str(CHECKPOINT), "--device", "cpu", "--max_new_tokens", "4")
ASK = ("--query", "What is this?", "--image-file")


def command(module: str, *arguments: str, stdin: str = "") -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
        cwd=GOLDEN,
        check=False,
    )


def test_run_llava_reports_the_tokens():
    done = command("llava.eval.run_llava", *MODEL, *ASK, PICTURE, "--sparse", "--max_num_trunction", "64")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    assert "576 -> 68" in done.stderr


def bad_inputs(folder: Path) -> list[tuple[tuple[str, ...], str]]:
    (folder / "half.png").write_bytes(Path(PICTURE).read_bytes()[:5000])
    return [
        ((*MODEL, *ASK, "nope.png"), "nope.png"),
        ((*MODEL, *ASK, str(folder / "half.png")), "half.png"),
        (("--model-path", "no/such/model", *ASK, PICTURE), "no/such/model"),
        ((*MODEL, *ASK, PICTURE, "--sparse", "--strategy", "drat"), "drat"),
        ((*MODEL, *ASK, PICTURE, "--sparse", "--reduction_ratio", "1.5"), "1.5"),
        ((*MODEL, *ASK, PICTURE, "--sparse", "--reduction_ratio", "0"), "reduction_ratio"),
        ((*MODEL, *ASK, PICTURE, "--sparse", "--image_token_length", "577"), "577"),
    ]


@pytest.mark.parametrize("case", range(7))
def test_bad_input_is_one_line_and_exit_code_2(case, tmp_path):
    arguments, named = bad_inputs(tmp_path)[case]
    done = command("llava.eval.run_llava", *arguments)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and named in last


@pytest.mark.parametrize("goodbye", ["/exit\n", ""])
def test_cli_holds_a_conversation(goodbye):
    stdin = f"hello\n/image nope.png\n/image {PICTURE}\nand this?\n{goodbye}"
    done = command("llava.serve.cli", *MODEL, "--image-file", PICTURE, "--sparse", stdin=stdin)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert "nope.png" in done.stderr
    assert done.stdout.count("ASSISTANT: ") == 2
