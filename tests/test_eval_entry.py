"""LLaVA's commands with LLaVA's flags, as its scripts type them, on the recorded tiny checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from llava.eval import model_vqa, model_vqa_mmbench, model_vqa_science
from llava.eval.engine.choices import LETTER_REQUEST
from llava.files import read_json

ROOT = Path(__file__).resolve().parents[1]
MINI = ROOT / "playground" / "data" / "mini"
CHECKPOINT = ROOT / "tests" / "golden" / "ckpt" / "llava-v1.5-tiny"
DECODING = ["--temperature", "0", "--conv-mode", "vicuna_v1", "--max_new_tokens", "2", "--device", "cpu"]
DART = ["--sparse", "--pruned_layer", "2", "--image_token_start_index", "35", "--image_token_length", "576"]
BUDGET = ["--max_num_trunction", "128", "--pivot_image_token", "4", "--pivot_text_token", "4"]


def flags(questions: Path, answers: Path) -> list[str]:
    files = ["--model-path", str(CHECKPOINT), "--question-file", str(questions), "--answers-file", str(answers)]
    return [*files, *DECODING, *DART, *BUDGET]


def rows_of(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def command(*words: object, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_model_vqa(tmp_path: Path) -> None:
    questions, answers = tmp_path / "q.jsonl", tmp_path / "answers" / "a.jsonl"
    lines = (MINI / "gqa" / "llava_gqa_testdev_balanced.jsonl").read_text().splitlines(keepends=True)
    questions.write_text("".join(lines[:2]))
    images = str(MINI / "gqa" / "data" / "images")
    model_vqa.main([*flags(questions, answers), "--image-folder", images])
    asked = [json.loads(line) for line in lines[:2]]
    assert [(r["question_id"], r["prompt"]) for r in rows_of(answers)] == [(a["question_id"], a["text"]) for a in asked]


@pytest.mark.parametrize("extra", [[], ["--single-pred-prompt"], ["--all-rounds", "--lang", "cn"]])
def test_model_vqa_mmbench(tmp_path: Path, extra: list[str]) -> None:
    table, answers = tmp_path / "t.tsv", tmp_path / "a.jsonl"
    lines = (MINI / "mmbench" / "mmbench_dev_20230712.tsv").read_text().splitlines(keepends=True)
    table.write_text("".join(lines[:3]))
    model_vqa_mmbench.main([*flags(table, answers), *extra])
    rows = rows_of(answers)
    options = 4 if "--all-rounds" in extra else 1
    assert [(r["question_id"], r["round_id"]) for r in rows] == [
        (index, turn) for index in (101, 1000101) for turn in range(options)
    ]
    assert LETTER_REQUEST not in rows[0]["prompt"]  # asked, not recorded, as in LLaVA's answers
    assert rows[0]["options"] == lines[1].split("\t")[3:7] and rows[0]["option_char"] == list("ABCD")
    assert rows[0]["prompt"].endswith(f"D. {rows[0]['options'][3]}")


def test_model_vqa_science_then_eval_science_qa(tmp_path: Path) -> None:
    home, answers = MINI / "scienceqa", tmp_path / "a.jsonl"
    questions = tmp_path / "q.json"
    questions.write_text(json.dumps(read_json(home / "llava_test_CQM-A.json")[-10:]))
    model_vqa_science.main(
        [*flags(questions, answers), "--image-folder", str(home / "images" / "test"), "--single-pred-prompt"]
    )
    rows = rows_of(answers)
    assert [r["prompt"].startswith("<image>\n") for r in rows] == [True] * 2 + [False] * 8
    assert all(r["prompt"].endswith(LETTER_REQUEST) for r in rows)
    done = command(
        *("llava/eval/eval_science_qa.py", "--base-dir", home, "--result-file", answers),
        *("--output-file", tmp_path / "o.jsonl", "--output-result", tmp_path / "r.json"),
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["parts"]["all"]["samples"] == 32
    assert read_json(tmp_path / "r.json")["outputs"]["31"] == rows[-2]["text"]


def test_converters_are_commands(tmp_path: Path) -> None:
    answers = tmp_path / "answers" / "run.jsonl"
    answers.parent.mkdir()
    truth = read_json(MINI / "seed_bench" / "SEED-Bench.json")["questions"]
    answers.write_text("".join(json.dumps({"question_id": q["question_id"], "text": "A"}) + "\n" for q in truth))
    done = command(
        *("scripts/convert_seed_for_submission.py", "--annotation-file", MINI / "seed_bench" / "SEED-Bench.json"),
        *("--result-file", answers, "--result-upload-file", tmp_path / "up.jsonl"),
    )
    share = sum(q["answer"] == "A" for q in truth) / len(truth)
    assert json.loads(done.stdout.splitlines()[-1])["score"] == pytest.approx(100 * share, abs=0.01), done.stderr
    assert rows_of(tmp_path / "up.jsonl")[0] == {"question_id": truth[0]["question_id"], "prediction": "A"}
    done = command(
        *("scripts/convert_mmbench_for_submission.py", "--experiment", "run", "--upload-dir", tmp_path / "up"),
        *("--annotation-file", MINI / "mmbench" / "mmbench_dev_20230712.tsv", "--result-dir", answers.parent),
    )
    assert done.returncode == 0 and (tmp_path / "up" / "run.xlsx").is_file(), done.stderr


def test_a_converter_without_its_input_is_one_clear_line(tmp_path: Path) -> None:
    done = command("scripts/convert_gqa_for_eval.py", "--src", tmp_path / "none.jsonl", "--dst", tmp_path / "x.json")
    assert done.returncode == 2 and done.stderr.strip() == f"error: {tmp_path / 'none.jsonl'} does not exist"


def test_an_unusable_table_stops_before_the_model_is_loaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = tmp_path / "t.tsv"
    table.write_text("index\tquestion\thint\tA\tB\tpicture\n")
    with pytest.raises(SystemExit) as stop:
        model_vqa_mmbench.main(flags(table, tmp_path / "a.jsonl"))
    assert stop.value.code == 2
    assert "t.tsv lacks the column image; expected" in capsys.readouterr().err
