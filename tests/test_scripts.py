"""scripts/v1_5/eval and v1_6/eval through bash, from another folder, on the recorded tiny checkpoint."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llava.eval import run, tasks
from llava.eval.engine.examples import Example
from llava.eval.engine.loop import answer_row
from llava.eval.tasks import mmbench
from llava.files import read_json

ROOT = Path(__file__).resolve().parents[1]
MINI = ROOT / "playground" / "data" / "mini"
CHECKPOINT = ROOT / "tests" / "golden" / "ckpt" / "llava-v1.5-tiny"
LIMIT_SECONDS = 300
QUESTIONS = 3
SCRIPTS = sorted(path.stem for path in (ROOT / "scripts" / "v1_6" / "eval").glob("*.sh"))


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


def script(
    name: str, cwd: Path, *ratio: str, version: str = "v1_5", **environment: str
) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if k not in ("CKPT", "DATA", "OUT", "CUDA_VISIBLE_DEVICES")}
    command = ["bash", str(ROOT / "scripts" / version / "eval" / f"{name}.sh"), *ratio]
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


def test_processes_share_the_questions_and_finish_what_a_killed_one_left(data: Path, tmp_path: Path) -> None:
    place = {"CKPT": str(CHECKPOINT), "DATA": str(data), "NPROC": "2"}
    first = script("textvqa", tmp_path, "", "64", OUT=str(tmp_path / "out"), **place)
    assert first.returncode == 0, first.stderr
    answers = tmp_path / "out" / "llava-v1.5-tiny-dart-original-t64.jsonl"
    whole, figures = answers.read_bytes(), first.stdout.splitlines()[-1]
    assert json.loads(figures)["samples"] == QUESTIONS and first.stdout.count(figures) == 1
    answers.write_bytes(whole[:-10])
    again = script("textvqa", tmp_path, "", "64", OUT=str(tmp_path / "out"), **place)
    assert again.returncode == 0, again.stderr
    assert answers.read_bytes() == whole and again.stdout.splitlines()[-1] == figures


def test_the_commands_failure_is_the_scripts(data: Path, tmp_path: Path) -> None:
    place = {"CKPT": str(CHECKPOINT), "DATA": str(data), "NPROC": "2", "OUT": str(tmp_path)}
    assert script("textvqa", tmp_path, "1.5", **place).returncode == 2


def test_a_missing_embedded_model_is_named(stub: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "scripts", copy / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    line = ["bash", str(copy / "scripts" / "v1_6" / "eval" / "pope.sh")]
    env = {k: v for k, v in os.environ.items() if k != "CKPT"} | {"PYTHON": str(stub)}
    result = subprocess.run(line, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    assert result.returncode == 2
    (error,) = result.stderr.splitlines()
    assert error.startswith("error: ") and "playground/models/llava-next-tiny" in error and "set CKPT" in error


@pytest.mark.parametrize("name", ["textvqa", "pope", "mme"])
def test_every_script_says_what_it_runs_on_first(name: str, tmp_path: Path) -> None:
    # A bad ratio stops the run right after the first lines.
    result = script(name, tmp_path, "1.5", OUT=str(tmp_path / "out"))
    assert result.returncode == 2
    first, second = result.stdout.splitlines()[:2]
    assert "playground/models/llava-tiny" in first and "playground/data/mini" in second
    assert result.stderr.strip().startswith("error: --reduction_ratio") and "1.5" in result.stderr


STUB = "#!{python}\nimport json, sys\nprint(json.dumps(sys.argv[1:]))\n"


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter that prints its arguments instead of running them."""
    path = tmp_path_factory.mktemp("bin") / "python"
    path.write_text(STUB.format(python=sys.executable))
    path.chmod(0o755)
    return path


def arguments_of(name: str, stub: Path, out: Path, *ratio: str, version: str = "v1_5", **environment: str) -> list[str]:
    """What the script asks the interpreter to run."""
    result = script(name, out, *ratio, version=version, PYTHON=str(stub), OUT=str(out), **environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", SCRIPTS)
def test_both_versions_run_their_task_and_pass_the_budget_on(name: str, stub: Path, tmp_path: Path) -> None:
    five = arguments_of(name, stub, tmp_path, "0.778", "64", CKPT="x")
    six = arguments_of(name, stub, tmp_path, "0.778", "64", version="v1_6", CKPT="x")
    assert five[:4] == six[:4] == ["-m", "llava.eval.run", "--task", name]
    assert five[five.index("--max_num_trunction") + 1] == "64" and five[five.index("--reduction_ratio") + 1] == "0.778"
    assert five == six
    assert "--sparse" not in arguments_of(name, stub, tmp_path, CKPT="x")
    default = arguments_of(name, stub, tmp_path, version="v1_6", CKPT="x")
    assert default[default.index("--max_num_trunction") + 1] == "320" and "--reduction_ratio" not in default
    assert "--sparse" not in arguments_of(name, stub, tmp_path, "none", version="v1_6", CKPT="x")


def test_the_environment_reaches_the_command(stub: Path, tmp_path: Path) -> None:
    wanted = {"SPLIT": "test", "SCOPE": "span", "ATTN": "eager", "MAX_NEW_TOKENS": "7", "BATCH_SIZE": "3"}
    words = arguments_of("mmbench", stub, tmp_path, "", "64", **wanted)
    pairs = dict(zip(words, words[1:], strict=False))
    assert (pairs["--split"], pairs["--scope"], pairs["--attn_implementation"]) == ("test", "span", "eager")
    assert (pairs["--max_new_tokens"], pairs["--batch-size"], pairs["--max_num_trunction"]) == ("7", "3", "64")
    assert (
        "--reduction_ratio" not in words
        and "--conv-mode" not in words
        and pairs["--answers-file"].endswith("original-t64-span-test.jsonl")
    )


UPLOADS = {"gqa": ".json", "seed": ".jsonl", "mmbench": ".xlsx", "mmbench_cn": ".xlsx"}


@pytest.mark.parametrize("name", ["gqa", "vqav2", "vizwiz", "seed", "sqa", "mmbench", "mmbench_cn"])
def test_the_script_answers_and_scores_its_mini_set(
    name: str, stub: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = {"MAX_NEW_TOKENS": "2", "BATCH_SIZE": "16"}
    words = arguments_of(name, stub, tmp_path, "0.778", "128", CKPT=str(CHECKPOINT), **small)
    run.main(words[2:])
    out = capsys.readouterr().out
    figures = json.loads(out.splitlines()[-1])
    answers = tmp_path / "llava-v1.5-tiny-dart-original-r0.778-t128.jsonl"
    rows = [json.loads(line) for line in answers.read_text().splitlines()]
    assert "576 -> 132" in out
    assert len(rows) == len(tasks.get(name).examples(MINI)) and 0 <= figures["score"] <= 100
    assert json.loads(answers.with_suffix(".score.json").read_text()) == figures
    upload = tmp_path / "answers_upload" / f"{answers.stem}{UPLOADS.get(name, '')}"
    assert upload.is_file() == (name in UPLOADS)
    assert figures.get("submission") == (str(upload) if name in UPLOADS else None)


def perfect(name: str, rows: list[Example]) -> list[str]:
    """The right answers of a mini set, read from its official files."""
    home = MINI / tasks.get(name).folder
    if name == "gqa":
        truth = read_json(home / "data" / "testdev_balanced_questions.json")
        return [truth[e.question_id]["answer"] for e in rows]
    if name == "vqav2":
        notes = read_json(home / "v2_mscoco_val2014_annotations.json")["annotations"]
        return [note["multiple_choice_answer"] for note in notes]
    if name == "vizwiz":
        return [row["answers"][0]["answer"] for row in read_json(home / "val.json")]
    if name == "seed":
        return [question["answer"] for question in read_json(home / "SEED-Bench.json")["questions"]]
    if name == "sqa":
        return ["ABCD"[problem["answer"]] for problem in read_json(home / "problems.json").values()]
    return [row["answer"] for row in mmbench.read_rows(next(home.glob("*.tsv")))]


@pytest.mark.parametrize("name", ["gqa", "vqav2", "vizwiz", "seed", "sqa", "mmbench", "mmbench_cn"])
def test_right_answers_score_full_marks(name: str) -> None:
    task = tasks.get(name)
    examples = list(task.examples(MINI))
    answers = [answer_row(e, text, "m", {}) for e, text in zip(examples, perfect(name, examples), strict=True)]
    assert task.score(MINI, answers)["score"] == 100.0
    assert 24 <= len(examples) <= 48
