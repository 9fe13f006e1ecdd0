"""Every command with every kind of bad input: exit code 2, one line that names the input, nothing half-written."""

from __future__ import annotations

import importlib
import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from llava.files import EMBEDDED_DATA, EMBEDDED_MODEL, ROOT

# A good call of every command, {out}: an empty folder, {questions}, {image}, {file}: good inputs.
MODEL, DATA = str(EMBEDDED_MODEL), str(EMBEDDED_DATA)
QWEN = str(EMBEDDED_MODEL.parent / "qwen2-vl-tiny")
LOOP = ["--model-path", MODEL, "--answers-file", "{out}/answers.jsonl", "--num-workers", "0"]
OWN = ["--question-file", "{questions}", "--image-folder", "{folder}"]
COMMANDS: dict[str, tuple[str, list[str]]] = {
    "dart": ("dart.cli", ["--model", QWEN, "--image", "{image}", "--question", "?", "--json", "{out}/a.json"]),
    "compare": ("dart.compare.command", ["--model", QWEN, "--data", "{questions}", "--out", "{out}/run"]),
    "serve": ("dart.serve.command", ["--model", QWEN]),
    "run": ("llava.eval.run", ["--task", "pope", "--data", DATA, *LOOP]),
    "score": ("llava.eval.score", ["--task", "pope", "--data", DATA, "--answers-file", "{file}", "--out", "{out}/f"]),
    "model_vqa": ("llava.eval.model_vqa", [*LOOP, *OWN]),
    "model_vqa_loader": ("llava.eval.model_vqa_loader", [*LOOP, *OWN]),
    "model_vqa_science": ("llava.eval.model_vqa_science", [*LOOP, *OWN]),
    "model_vqa_mmbench": ("llava.eval.model_vqa_mmbench", [*LOOP, "--question-file", "{file}"]),
    "model_vqa_qbench": ("llava.eval.model_vqa_qbench", [*LOOP, "--questions-file", "{file}", "--image-folder", "."]),
    "model_vqa_ocrbench": (
        "llava.eval.model_vqa_ocrbench",
        ["--model_path", MODEL, "--image_folder", "{folder}", "--OCRBench_file", "{file}", "--output_folder", "{out}"],
    ),
    "suite": ("llava.eval.suite", ["--ckpt", MODEL, "--data", DATA, "--out", "{out}/suite.json"]),
    "vtc": ("llava.eval.vtc.run", ["--ckpt", MODEL, "--data", DATA, "--ratio", "2", "--out", "{out}/vtc.json"]),
    "run_llava": ("llava.eval.run_llava", ["--model-path", MODEL, "--image-file", "{image}", "--query", "?"]),
    "cli": ("llava.serve.cli", ["--model-path", MODEL, "--image-file", "{image}"]),
    "gradio_web_server": ("llava.serve.gradio_web_server", ["--model-path", MODEL]),
    "train": (
        "llava.train.train",
        ["--model_name_or_path", MODEL, "--data_path", "{file}", "--image_folder", "{folder}", "--output_dir", "{out}"],
    ),
    "eval_pope": (
        "llava.eval.eval_pope",
        ["--annotation-dir", "{folder}", "--question-file", "{questions}", "--result-file", "{file}"],
    ),
    "eval_mme": ("llava.eval.eval_mme", ["--results_dir", "{folder}"]),
    "eval_textvqa": ("llava.eval.eval_textvqa", ["--annotation-file", "{file}", "--result-file", "{questions}"]),
    "eval_science_qa": ("llava.eval.eval_science_qa", ["--base-dir", "{folder}", "--result-file", "{questions}"]),
    "eval_mmvet": (
        "llava.eval.eval_mmvet",
        ["--mmvet_path", "{folder}", "--result_file", "{file}", "--result_path", "{out}"],
    ),
    "eval_gpt_review": (
        "llava.eval.eval_gpt_review_bench",
        ["-q", "{questions}", "-c", "{file}", "-a", "{file}", "{file}", "-o", "{out}/review.jsonl"],
    ),
    "summarize_gpt_review": ("llava.eval.summarize_gpt_review", ["-f", "{file}"]),
    "convert_answer_to_mme": (
        "llava.eval.convert_answer_to_mme",
        ["--experiment", "x", "--answers-file", "{file}", "--out-dir", "{out}/mme", "--data-dir", "{folder}"],
    ),
    "convert_gqa": ("scripts.convert_gqa_for_eval", ["--src", "{file}", "--dst", "{out}/a.json"]),
    "merge_lora": (
        "scripts.merge_lora_weights",
        ["--model-path", "{folder}", "--model-base", "{folder}", "--save-model-path", "{out}/merged"],
    ),
    "convert_hf": ("scripts.convert_llava_to_hf", ["--model-path", "{folder}", "--output", "{out}/hf"]),
    "convert_mmbench": (
        "scripts.convert_mmbench_for_submission",
        ["--annotation-file", "{file}", "--result-dir", "{folder}", "--upload-dir", "{out}/up", "--experiment", "x"],
    ),
    "convert_mmvet": ("scripts.convert_mmvet_for_eval", ["--src", "{file}", "--dst", "{out}/a.json"]),
    "convert_seed": (
        "scripts.convert_seed_for_submission",
        ["--annotation-file", "{file}", "--result-file", "{questions}", "--result-upload-file", "{out}/a.jsonl"],
    ),
    "convert_vizwiz": (
        "scripts.convert_vizwiz_for_submission",
        ["--annotation-file", "{file}", "--result-file", "{questions}", "--result-upload-file", "{out}/a.json"],
    ),
    "convert_vqav2": ("scripts.convert_vqav2_for_submission", ["--dir", "{out}", "--ckpt", "x", "--split", "y"]),
    "benchmark_latency": ("benchmarks.latency", ["--out", "{out}/a.json"]),
    "benchmark_against": ("benchmarks.against", ["--out", "{out}/a.json"]),
    "benchmark_methods": ("benchmarks.methods", ["--out", "{out}/a.json"]),
    "benchmark_selection": ("benchmarks.selection", []),
    "benchmark_serving_vllm": ("benchmarks.serving_vllm", ["--out", "{out}/a.json"]),
    "benchmark_serving": ("benchmarks.serving", ["--served", "m", "--out", "{out}/a.json"]),
    "benchmark_scaling": ("benchmarks.scaling", ["--out", "{out}/a.json"]),
    "benchmark_training": ("benchmarks.training", ["--out", "{out}/a.json"]),
    "benchmark_kernels": ("benchmarks.kernels", ["--out", "{out}/a.json"]),
    "benchmark_builds": ("benchmarks.builds", ["--out", "{out}/a.json"]),
    "benchmark_evidence": ("benchmarks.evidence", ["--out", "{out}/a.json"]),
}
# Flags of inputs, in the good calls; what stands for them.
MODEL_FLAGS = {"--model", "--model-path", "--model_path", "--ckpt", "--model_name_or_path"}
FILE_FLAGS = {
    "--question-file", "--questions-file", "--OCRBench_file", "--answers-file", "--annotation-file", "--result-file",
    "--result_file", "--src", "--data_path", "-q", "-c", "-f",
}  # fmt: skip
IMAGE_FLAGS = {"--image", "--image-file"}
OUT_FLAGS = {"--json", "--out", "--dst", "--result-upload-file", "-o", "--answers-file"}
WRITES_ANSWERS = {"run", "model_vqa", "model_vqa_loader", "model_vqa_science", "model_vqa_mmbench", "model_vqa_qbench"}
VALUES = {
    "--device": "toaster",
    "--dtype": "int3",
    "--torch-dtype": "int3",
    "--keep": "-3",
    "--strategy": "nonesuch",
    "--num_beams": "0",
    "--batch-size": "0",
    "--max_new_tokens": "0",
    "--temperature": "nan",
    "--top_p": "7",
    "--conv-mode": "nonesuch",
    "--task": "nonesuch",
    "--split": "nonesuch",
    "--num-chunks": "0",
    "--blur": "0",
    "--max_num_trunction": "0",
    "--revision": "v9",
    "--model-base-revision": "v9",
    "--num_train_epochs": "many",
    "--version": "nonesuch",
}
PROGRESS = re.compile(r"\d+%\|.*\d/\d")  # a bar
BAD_FILES = {
    "missing": None,
    "empty": b"",
    "cut": b'{"a": [1, ',
    "binary": bytes(range(256)),
    "deep": b"[" * 100_000,
    "number": b"7",
    "null": b"null",
    "objects": b"[{}]",
    "lists": b"[[]]",
    "object": b'{"question_id": {}, "image": 3, "text": []}',
    "half": b'{"question_id": 1, "image": "a.png", "text": "\\ud800", "prompt": "", "question": ""}',
}


def help_of(module: str, capsys: pytest.CaptureFixture[str]) -> str:
    with pytest.raises(SystemExit) as stop:
        importlib.import_module(module).main(["--help"])
    assert stop.value.code == 0
    return capsys.readouterr().out


@pytest.fixture
def place(tmp_path: Path) -> dict[str, str]:
    """Good inputs, and an empty folder for what a command writes."""
    folder = tmp_path / "inputs"
    folder.mkdir()
    (tmp_path / "out").mkdir()
    Image.new("RGB", (28, 28)).save(folder / "a.png")
    row = {"question_id": 1, "image": "a.png", "text": "What?", "question": "What?", "answer": "A", "prompt": "What?"}
    (folder / "questions.jsonl").write_text(json.dumps(row) + "\n")
    (folder / "file.json").write_text(json.dumps([row]))
    return {
        "out": str(tmp_path / "out"),
        "folder": str(folder),
        "questions": str(folder / "questions.jsonl"),
        "image": str(folder / "a.png"),
        "file": str(folder / "file.json"),
        "bad": str(tmp_path / "bad-input"),
    }


def refused(name: str, module: str, argv: Sequence[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The line that a command ends with. Fails for any other end than exit code 2 and that line."""
    where = f"{name} {' '.join(argv)}"
    try:
        importlib.import_module(module).main(list(argv))
    except SystemExit as stop:
        said = capsys.readouterr().err.replace("\r", "\n").splitlines()
        lines = [line for line in said if line.strip() and not PROGRESS.search(line)]
        assert stop.code == 2, (where, stop.code, lines)
        assert len(lines) == 1 and lines[0].startswith("error: "), (where, lines)
        return lines[-1]
    except BaseException as error:
        raise AssertionError(f"{where} ends in a traceback: {error!r}") from error
    raise AssertionError(f"{where} is not refused")


def with_value(argv: list[str], flag: str, value: str) -> list[str]:
    if flag not in argv:
        return [*argv, flag, value]
    k = argv.index(flag) + 1
    return [*argv[:k], value, *argv[k + 1 :]]


def written(folder: str) -> list[str]:
    """Files with something in them, other than what a run needs to go on (settings, locks)."""
    paths = [p for p in Path(folder).rglob("*") if p.is_file() and p.stat().st_size]
    return [str(p) for p in paths if not p.name.endswith((".meta.json", ".lock"))]


@pytest.mark.parametrize("name", COMMANDS)
def test_bad_inputs_are_one_line(name, place, capsys, monkeypatch):
    for variable in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.chdir(place["out"])
    module, words = COMMANDS[name]
    if name == "gradio_web_server":  # which asks for Gradio before it reads a model: make test-demo
        pytest.importorskip("gradio")
    good = [word.format(**place) for word in words]
    known = help_of(module, capsys)
    bad = Path(place["bad"])

    def check(argv: list[str], named: str) -> None:
        line = refused(name, module, argv, capsys)
        assert any(each in line for each in (named, place["folder"], "sample number 0")), (name, argv, line)
        assert not written(place["out"]), (name, argv, written(place["out"]))

    check([*good, "--no-such-flag", "1"], "")
    for flag, value in VALUES.items():
        if f"{flag} " in known or f"{flag}\n" in known:
            check(with_value(good, flag, value), "")
    for flag in good:
        if flag in MODEL_FLAGS:
            check(with_value(good, flag, str(bad)), str(bad))
            bad.mkdir()
            for text in (None, "[]", "{}", "no JSON", '{"model_type": "bert"}'):
                if text is not None:
                    (bad / "config.json").write_text(text)
                check(with_value(good, flag, str(bad)), bad.name)
            (bad / "config.json").unlink()
            bad.rmdir()
        if flag in IMAGE_FLAGS:
            for content in (None, b"", b"\x89PNG\r\n\x1a\n" + b"\0" * 99):
                if content is not None:
                    bad.write_bytes(content)
                check(with_value(good, flag, str(bad)), str(bad))
                bad.unlink(missing_ok=True)
        if flag in FILE_FLAGS and not (flag == "--answers-file" and name in WRITES_ANSWERS):
            for content in BAD_FILES.values():
                if content is not None:
                    bad.write_bytes(content)
                check(with_value(good, flag, str(bad)), bad.name)
                bad.unlink(missing_ok=True)
        if flag in OUT_FLAGS and name in WRITES_ANSWERS:
            check(with_value(good, flag, place["folder"]), place["folder"])
            check(with_value(good, flag, os.devnull), os.devnull)


def test_every_command_is_in_the_matrix():
    folders = [ROOT / "llava" / "eval", ROOT / "scripts", ROOT / "benchmarks"]
    found = {
        f"{path.parent.relative_to(ROOT)}/{path.stem}".replace("/", ".")
        for folder in folders
        for path in folder.glob("*.py")
        if "@exits_cleanly" in path.read_text(encoding="utf-8")
    }
    assert found - {module for module, _ in COMMANDS.values()} == {
        "scripts.demo",
        "scripts.reproduce",
    }  # they read no file that a user names
