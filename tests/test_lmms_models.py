"""The lmms-eval models on the embedded checkpoints and the offline mini tasks. Run by `make test-lmms`."""

from __future__ import annotations

import argparse
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("lmms_eval", reason="lmms-eval has an environment of its own: make test-lmms")

import decord
from lmms_eval import evaluator
from lmms_eval.models import get_model
from lmms_eval.tasks import TaskManager, get_task_dict
from lmms_eval_dart.models.base import cut
from lmms_eval_dart.models.qwen2_5_vl import PARAGRAPH
from lmms_eval_dart.visuals import checked_messages
from PIL import Image

from dart import DartConfig
from dev.tiny import mini_several
from dev.tiny.mini import SEED
from dev.tiny.several import FRAMES
from llava.eval.engine import loop
from llava.eval.engine.examples import Example

ROOT = Path(__file__).resolve().parents[1]
MODELS, MINI = ROOT / "playground" / "models", ROOT / "playground" / "data" / "mini"
PIXELS = {"min_pixels": 256 * 28 * 28, "max_pixels": 512 * 28 * 28}
TASKS = ["pope_mini", "mme_mini", "textvqa_mini", "two_images_mini", "video_mini"]
KINDS = [("qwen2_vl", False), ("qwen2_5_vl", False), ("qwen2_5_vl", True)]  # force_simple
CPU = {"device": "cpu", "device_map": "cpu"}
torch.set_num_threads(1)  # models this small gain nothing from a second one


def checkpoint(family: str) -> str:
    return str(MODELS / f"{family.replace('_vl', '-vl')}-tiny")


def built(name: str, simple: bool = False, **arguments: Any) -> Any:
    family = name.removesuffix("_dart")
    return get_model(name, simple)(pretrained=checkpoint(family), **PIXELS, **arguments)


@pytest.fixture(scope="module")
def manager() -> TaskManager:
    return TaskManager("ERROR", include_path=str(ROOT / "lmms-eval" / "tasks"))


def answers(model: Any, manager: TaskManager, tasks: list[str], limit: int) -> dict[str, list[str]]:
    """What `model` says to the first `limit` questions of each task, after lmms-eval's own filters."""
    model.clean = lambda: None  # the evaluator frees the model when it is done
    options: dict[str, Any] = {"task_manager": manager, "log_samples": True, "verbosity": "ERROR"}
    report = evaluator.simple_evaluate(model, tasks=tasks, limit=limit, gen_kwargs="max_new_tokens=4", **options)
    rows = {task: sorted(report["samples"][task], key=lambda row: row["doc_id"]) for task in tasks}
    return {task: [row["filtered_resps"][0] for row in rows[task]] for task in tasks}


@pytest.mark.parametrize(("family", "simple"), KINDS)
def test_without_dart_the_answers_are_the_stock_models(family, simple, manager):
    stock = answers(built(family, simple, **CPU), manager, TASKS, 4)
    ours = answers(built(f"{family}_dart", simple, Sparse=False), manager, TASKS, 4)
    assert ours == stock
    assert all(text for texts in stock.values() for text in texts)


@pytest.mark.parametrize(("family", "simple"), KINDS)
def test_dart_keeps_its_share_of_pictures_and_videos(family, simple, manager):
    model = built(f"{family}_dart", simple, reduction_ratio=0.889, max_num_trunction=128)
    config = DartConfig(reduction_ratio=0.889, pivot_order="original")
    assert model.dart_handle.config == config
    answers(model, manager, ["pope_mini"], 1)
    last = model.dart_handle.last
    assert last.visual_before[0] >= 256 and last.visual_after == [config.num_kept(last.visual_before[0])]
    answers(model, manager, ["two_images_mini", "video_mini"], 2)
    assert model._tally.samples == 1 + 2 + 2
    assert model._tally.after < 0.25 * model._tally.before


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_a_batch_is_answered_as_each_question_alone(family, manager):
    tasks = ["textvqa_mini", "two_images_mini"]
    one_by_one = answers(built(f"{family}_dart", keep=0.25), manager, tasks, 6)
    together = answers(built(f"{family}_dart", keep=0.25, batch_size=3), manager, tasks, 6)
    assert together == one_by_one


def test_llava_dart_answers_as_the_evaluation_loop(manager):
    model = get_model("llava_dart")(pretrained=str(MODELS / "llava-tiny"), keep=128, batch_size=3)
    said = answers(model, manager, ["textvqa_mini"], 6)["textvqa_mini"]
    assert model.dart_handle.last.visual_before[0] == 576 and model.dart_handle.last.visual_after[0] == 132
    loaded = loop.Loaded(model.tokenizer, model.model, model.image_processor, "llava-tiny")
    args = _loop_arguments()
    examples = loop.read_question_file(
        MINI / "textvqa" / "llava_textvqa_val_v051_ocr.jsonl", MINI / "textvqa" / "train_images"
    )[:6]
    assert said == [_ask(loaded, example, args) for example in examples]


def _loop_arguments() -> Any:
    parser = argparse.ArgumentParser()
    loop.add_model_arguments(parser, "")
    return parser.parse_args([])


def _ask(loaded: loop.Loaded, example: Example, args: Any) -> str:
    prompt = loop.build_prompt(example.text, loaded.model.config, "vicuna_v1")
    picture = [example.picture()]
    row = loop.encode(prompt, picture, loaded.tokenizer, loaded.image_processor, loaded.model.config)
    return loop.generate(loaded, loop.collate([row]), args, [example.question_id])[0]


def test_llava_dart_sees_several_pictures_but_no_video(manager, capsys):
    model = get_model("llava_dart")(pretrained=str(MODELS / "llava-tiny"))
    assert len(answers(model, manager, ["two_images_mini"], 2)["two_images_mini"]) == 2
    assert model.dart_handle.last.visual_before == [2 * 576]
    with pytest.raises(SystemExit):
        answers(model, manager, ["video_mini"], 1)
    assert "error: task video_mini shows videos, which LLaVA cannot see" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("qwen2_vl_dart", {"Sparse": "maybe"}, "Sparse must be True or False, got 'maybe'"),
        ("qwen2_5_vl_dart", {"reduction_ratio": 1.5}, "reduction_ratio must be between 0 and 1"),
        ("qwen2_vl_dart", {"sparsity": 2}, "unknown sparsity; DART's are Sparse, "),
        ("qwen2_5_vl_dart", {"pretrained": "/nowhere/model"}, "pretrained=/nowhere/model does not exist"),
        ("llava_dart", {"pretrained": "/nowhere/model"}, "pretrained=/nowhere/model does not exist"),
        (
            "llava_dart",
            {"pretrained": str(MODELS / "llava-tiny"), "conv_template": "x"},
            "unknown conversation template 'x'",
        ),
    ],
)
def test_a_bad_argument_is_one_line_and_code_2(name, arguments, message, capsys):
    with pytest.raises(SystemExit) as end:
        get_model(name)(**{"pretrained": str(MODELS)} | arguments)
    assert end.value.code == 2
    (line,) = re.findall("error: .*", capsys.readouterr().err)  # beside a progress bar
    assert message in line


@pytest.mark.parametrize(("family", "simple"), KINDS)
@pytest.mark.parametrize("content", [b"not a video", None])
def test_a_bad_video_is_one_line_and_code_2(family, simple, content, tmp_path, capsys):
    model = built(f"{family}_dart", simple, Sparse=False)
    path = tmp_path / "clip.mp4"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SystemExit) as end:
        answers(model, _one_video_task(tmp_path, path), ["one_video"], 1)
    assert end.value.code == 2
    (line,) = re.findall("error: .*", capsys.readouterr().err)  # beside a progress bar
    assert line.startswith(f"error: video {path} " + ("does not exist" if content is None else "cannot be read"))


def _one_video_task(folder: Path, video: Path) -> TaskManager:
    """A task of one question about `video`."""
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "rows.jsonl").write_text(json.dumps({"video": str(video), "question": "What?", "answer": "x"}) + "\n")
    (tasks / "utils.py").write_text("def visual(doc):\n    return [doc['video']]\n")
    lines = ["task: one_video", "dataset_path: json", "dataset_kwargs: {data_files: {test: rows.jsonl}}"]
    lines += ["test_split: test", "doc_to_visual: !function utils.visual", "doc_to_text: question"]
    lines += ["doc_to_target: answer", "output_type: generate_until", "metric_list: [{metric: exact_match}]"]
    (tasks / "one_video.yaml").write_text("\n".join(lines) + "\n")
    return TaskManager("ERROR", include_path=str(tasks))


def test_until_and_the_system_prompt_of_the_chat_class():
    assert cut("red\nASSISTANT: blue", ["ASSISTANT:", "\n\n"], PARAGRAPH) == "red\n"
    assert cut("one\n\ntwo", "\n\n", PARAGRAPH) == "one\n\ntwo"
    messages = [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]
    system = {"role": "system", "content": [{"type": "text", "text": "Be brief."}]}
    assert checked_messages(lambda doc: messages, "Be brief.")(None) == [system, *messages]
    assert checked_messages(lambda doc: [system, *messages], "Other.")(None) == [system, *messages]
    assert checked_messages(lambda doc: messages, None)(None) == messages


def test_the_system_prompt_reaches_the_model(manager):
    def prompt_length(**arguments: Any) -> int:
        model = built("qwen2_5_vl_dart", **arguments)
        answers(model, manager, ["pope_mini"], 1)
        return model.dart_handle.last.tokens_before

    assert prompt_length(system_prompt="You are a helpful assistant.") == prompt_length()
    assert prompt_length(system_prompt="You are a helpful assistant. You are a helpful assistant.") > prompt_length()


def test_cleaning_up_takes_dart_off():
    model = built("qwen2_vl_dart")
    handle = model.dart_handle
    model.clean()
    assert not handle.attached and model.dart_handle is None


def test_the_mini_tasks_first_questions_are_a_mixture(manager):
    rows = {name: task.test_docs() for name, task in _tasks(manager).items()}
    assert {name: len(each) for name, each in rows.items()} == dict(zip(TASKS, (240, 250, 240, 60, 60), strict=True))
    assert {row["image"].split("_")[1] for row in list(rows["pope_mini"])[:6]} == {"random", "popular", "adversarial"}
    first = list(rows["mme_mini"])[:10]
    assert len({row["category"] for row in first}) == 5
    assert [row["answer"] for row in first] == ["Yes", "No"] * 5
    for row in rows["video_mini"]:
        assert (MINI / "video" / "videos" / row["video"]).is_file()


def _tasks(manager: TaskManager) -> dict[str, Any]:
    return get_task_dict(TASKS, manager)


def test_pictures_and_clips_are_what_their_script_writes(tmp_path):
    for name, make in mini_several.MAKERS.items():
        make(tmp_path / name, random.Random(f"mini-{name}-{SEED}"))
        assert (tmp_path / name / "questions.jsonl").read_text() == (MINI / name / "questions.jsonl").read_text()
        for made in (path for path in (tmp_path / name).rglob("*.*") if path.suffix in (".jpg", ".mp4")):
            kept = MINI / made.relative_to(tmp_path)
            assert np.abs(frames_of(made).astype(int) - frames_of(kept)).mean() < 1.0  # encoders' versions differ


def frames_of(path: Path) -> np.ndarray:
    """uint8 [frames, H, W, 3]."""
    if path.suffix == ".jpg":
        return np.asarray(Image.open(path).convert("RGB"))[None]
    frames = decord.VideoReader(str(path))[:].asnumpy()
    assert len(frames) == FRAMES
    return frames


@pytest.mark.parametrize(("family", "simple"), KINDS)
def test_downsampling_makes_images_smaller_before_the_processor(family, simple, manager):
    given = {"pretrained": checkpoint(family), "max_pixels": PIXELS["max_pixels"], "min_pixels": 4 * 28 * 28}
    before = []
    for settings in ({"strategy": "random"}, {"strategy": "downsample", "reduction_ratio": 0.75}):
        model = get_model(f"{family}_dart", simple)(**given, **settings)
        answers(model, manager, ["pope_mini"], 2)
        before.append(model.dart_handle.last.visual_before[0])
    assert before[1] == pytest.approx(before[0] / 4, rel=0.1)
