"""Scripts of OCRBench, Q-Bench, MM-Vet and LLaVA-Bench through bash, small, on the recorded tiny checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from judge_server import stand_in

from llava.eval import tasks
from llava.eval.engine.examples import Example
from llava.eval.engine.loop import answer_row
from llava.files import read_json

ROOT = Path(__file__).resolve().parents[1]
MINI = ROOT / "playground" / "data" / "mini"
CHECKPOINT = ROOT / "tests" / "golden" / "ckpt" / "llava-v1.5-tiny"
LIMIT_SECONDS = 300
NOT_OURS = ("CKPT", "DATA", "OUT", "CUDA_VISIBLE_DEVICES", "OPENAI_BASE_URL", "OPENAI_API_KEY", "JUDGE_MODEL")
ANSWERS = "llava-v1.5-tiny-dart-original-r0.778-t128"


def script(name: str, out: Path, version: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {k: v for k, v in os.environ.items() if k not in NOT_OURS} | environment
    env |= {"PYTHON": sys.executable, "DEVICE": "cpu", "CKPT": str(CHECKPOINT), "OUT": str(out)}
    env |= {"MAX_NEW_TOKENS": "2", "BATCH_SIZE": "16", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2")}
    command = ["bash", str(ROOT / "scripts" / version / "eval" / f"{name}.sh"), "0.778", "128"]
    return subprocess.run(command, cwd=out, env=env, capture_output=True, text=True, timeout=LIMIT_SECONDS)


@pytest.mark.parametrize(
    ("name", "version", "suffix"),
    [("ocrbench", "v1_5", ".json"), ("qbench", "v1_6", ".jsonl"), ("qbench_zh", "v1_5", ".jsonl")],
)
def test_scored_here(name: str, version: str, suffix: str, tmp_path: Path) -> None:
    result = script(name, tmp_path, version)
    assert result.returncode == 0, result.stderr
    assert "576 -> 132" in result.stdout
    figures = json.loads(result.stdout.splitlines()[-1])
    assert figures["samples"] == len(tasks.get(name).examples(MINI))
    assert figures["submission"] == str(tmp_path / "answers_upload" / f"{ANSWERS}{suffix}")
    settings = json.loads((tmp_path / f"{ANSWERS}.jsonl.meta.json").read_text())
    assert settings["conv_mode"] == ("vicuna_v1" if name == "ocrbench" else "llava_v1")


@pytest.mark.parametrize(
    ("name", "version", "reply", "score"), [("mmvet", "v1_6", "0.7", 70.0), ("llavabench", "v1_5", "5 4\nfine", 80.0)]
)
def test_judged(name: str, version: str, reply: str, score: float, tmp_path: Path) -> None:
    asked = len(tasks.get(name).examples(MINI))
    alone = script(name, tmp_path, version)
    assert alone.returncode == 2 and alone.stderr.strip().splitlines()[-1].startswith("error: the judge is needed now")
    assert len((tmp_path / f"{ANSWERS}.jsonl").read_text().splitlines()) == asked
    with stand_in(lambda *_: reply) as server:
        judged = script(name, tmp_path, version, OPENAI_BASE_URL=server.url, JUDGE_MODEL="stand-in")
        assert judged.returncode == 0, judged.stderr
        assert f"resuming: {asked} answers" in judged.stdout and len(server.requests) == asked
    figures = json.loads(judged.stdout.splitlines()[-1])
    assert (figures["score"], figures["judge"]) == (score, "stand-in")


def perfect(name: str, rows: list[Example]) -> list[str]:
    """The right answers of a mini set, read from its official files."""
    home = MINI / tasks.get(name).folder
    if name == "ocrbench":
        return [entry["answers"][0] for entry in read_json(home / "OCRBench" / "OCRBench.json")]
    return [entry["correct_ans"] for entry in read_json(home / tasks.get(name).splits["dev"].questions)]


@pytest.mark.parametrize("name", ["ocrbench", "qbench", "qbench_zh"])
def test_right_answers_score_full_marks(name: str) -> None:
    task = tasks.get(name)
    examples = list(task.examples(MINI))
    answers = [answer_row(e, text, "m", {}) for e, text in zip(examples, perfect(name, examples), strict=True)]
    figures = task.score(MINI, answers)
    assert figures["score"] == (len(examples) if name == "ocrbench" else 100.0)
    constant = [answer_row(e, "A", "m", {}) for e in examples]
    assert task.score(MINI, constant)["score"] <= 0.6 * figures["score"]
