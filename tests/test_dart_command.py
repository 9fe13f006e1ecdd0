"""`python -m dart`, and the README's example for a user's own model."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from qwen_golden import RECORDS, sample
from transformers import (
    AutoTokenizer,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
)
from transformers.models.llava_onevision.image_processing_pil_llava_onevision import LlavaOnevisionImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import dart
from dart.cli.app import main
from dart.cli.loading import load
from dart.cli.media import Video, read_image, read_video, spaced
from dart.viz import NEWLINE, View, draw_views, kept_cells
from llava.eval.engine.prompts import build_prompt
from scripts import convert_llava_to_hf

ROOT = Path(__file__).resolve().parents[1]
GOLDEN = ROOT / "tests" / "golden"
MODELS = ROOT / "playground" / "models"
QWEN2, QWEN25 = GOLDEN / "ckpt" / "qwen2-vl-tiny", GOLDEN / "ckpt" / "qwen2.5-vl-tiny"
SCENE = ROOT / "playground" / "data" / "mini" / "textvqa" / "train_images" / "scene_0001.jpg"
QUESTION = "What number is on the blue sign?"
RIGHT = "38"
TOKEN_PX = 28


@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    """name -> folder of an embedded model in transformers' format."""
    folders = {}
    for name in ("llava-tiny", "llava-next-tiny"):
        folders[name] = tmp_path_factory.mktemp("hf") / name
        convert_llava_to_hf.main(
            ["--model-path", str(MODELS / name), "--output", str(folders[name]), "--torch-dtype", "float32"]
        )
    return folders


def run(tmp_path, capsys, model, *arguments):
    """(figures, printed lines, overlay) of one run without warm-up."""
    capsys.readouterr()
    overlay, figures = tmp_path / "out.png", tmp_path / "out.json"
    files = ["--save-overlay", str(overlay), "--json", str(figures), "--device", "cpu", "--warm-up", "0"]
    files += ["--max-new-tokens", "4"]
    question = [] if "--question" in arguments else ["--question", QUESTION]
    main(["--model", str(model), *question, *files, *map(str, arguments)])
    return json.loads(figures.read_text()), capsys.readouterr().out, Image.open(overlay)


def refused(capsys, *arguments):
    """The one line on stderr of a command that ends with code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    assert ended.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def test_readme_example_runs_as_written(converted, monkeypatch, capsys):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"## Your own model\n.*?```python\n(.*?)```", readme, re.DOTALL)
    assert len(code.strip().splitlines()) <= 14
    names = {"llava-hf/llava-1.5-7b-hf": converted["llava-tiny"], "photo.jpg": SCENE, "What is this?": QUESTION}
    for written, local in names.items():
        assert code.count(written) == 1
        code = code.replace(written, str(local))
    scope: dict = {}
    exec(code, scope)
    assert capsys.readouterr().out.splitlines() == [RIGHT, "[576] -> [124]"]
    assert not scope["handle"].attached


@pytest.mark.parametrize("name", ["llava-tiny", "llava-next-tiny"])
def test_both_formats_of_llava_see_and_draw_the_same(name, converted, tmp_path, capsys):
    """The tokenizers split the text behind a picture differently, so that a few of the kept tokens differ."""
    arguments = ("--image", SCENE, "--keep", "0.3")
    own, _, _ = run(tmp_path, capsys, MODELS / name, *arguments)
    other, _, _ = run(tmp_path, capsys, converted[name], *arguments)
    assert own["unpruned"]["answer"] == own["dart"]["answer"] == other["dart"]["answer"] == RIGHT
    assert own["dart"]["visual_tokens_kept"] == other["dart"]["visual_tokens_kept"]
    same = set(own["kept"]) & set(other["kept"])
    assert len(same) > 0.8 * len(own["kept"])
    image = [read_image(str(SCENE))]
    one, two = (
        load(str(m), "cpu", None, None).reader.read("?", image, []).views for m in (MODELS / name, converted[name])
    )
    kept = sorted(same)
    assert np.array_equal(np.asarray(draw_views(one, kept)), np.asarray(draw_views(two, kept)))
    assert [(v.grid, list(v.cells)) for v in one] == [(v.grid, list(v.cells)) for v in two]


def test_prompt_of_a_converted_llava_is_the_original_one(converted):
    reader = load(str(converted["llava-tiny"]), "cpu", None, None).reader
    ids = reader.read("What is it?", [read_image(str(SCENE))] * 2, []).inputs["input_ids"][0]
    text = reader.tokenizer.decode(ids, skip_special_tokens=False).removeprefix("<s>")
    wanted = build_prompt("What is it?", None, "vicuna_v1", 2).replace("<image>", "<image>" * 576)
    assert "".join(text.split()) == "".join(wanted.split())
    assert ids[0] == reader.tokenizer.bos_token_id != ids[1]


def test_figures_are_those_of_the_model_itself(tmp_path, capsys):
    """Tokens and bytes beside a count by hand: 576 visual tokens, K = 2 of the model's layers hold them all."""
    figures, out, _ = run(tmp_path, capsys, MODELS / "llava-tiny", "--image", SCENE, "--keep", "128")
    model = load(str(MODELS / "llava-tiny"), "cpu", None, None).model
    config = model.config
    before, after = figures["unpruned"], figures["dart"]
    width = config.num_key_value_heads * config.hidden_size // config.num_attention_heads
    layers = config.num_hidden_layers
    length = before["kv_cache_tokens"][0]
    assert (before["visual_tokens_kept"], after["visual_tokens_kept"]) == (576, 132)
    assert before["kv_cache_tokens"] == [length] * layers
    assert after["kv_cache_tokens"] == [length] * 2 + [length - 576 + 132] * (layers - 2)
    for each in (before, after):
        assert each["kv_cache_bytes"] == 2 * 4 * width * sum(each["kv_cache_tokens"])
        assert each["prefill_ms"] > 0 and each["decode_ms_per_token"] > 0
    assert f"{after['kv_cache_bytes']:,}" in out and "without DART: 38" in out
    assert {"command", "commit", "hardware", "versions"} <= set(figures)


@pytest.mark.parametrize("family", sorted(RECORDS))
def test_qwen_pictures_become_the_recorded_inputs(family):
    """Pixels and grids of the recorded processor; the model's own count of tokens is that of the views."""
    folder = {"qwen2_vl": QWEN2, "qwen2_5_vl": QWEN25}[family]
    reader = load(str(folder), "cpu", None, None).reader
    for name, record in RECORDS[family]["samples"].items():
        wanted = sample(family, name)
        pictures = [Image.open(GOLDEN / "images" / f"{each}.png").convert("RGB") for each in record["images"]]
        prompt = reader.read(QUESTION, pictures, [])
        torch.testing.assert_close(prompt.inputs["pixel_values"], wanted["pixel_values"])
        assert torch.equal(prompt.inputs["image_grid_thw"], wanted["image_grid_thw"])
        assert sum(len(view.cells) for view in prompt.views) == int((wanted["mm_token_type_ids"] == 1).sum())
        assert int(prompt.inputs["mm_token_type_ids"].sum()) == int((wanted["mm_token_type_ids"] == 1).sum())


def frames(count, size=(112, 84)):
    """Pictures of one colour each."""
    return [Image.new("RGB", size, (40 * k, 255 - 40 * k, 20)) for k in range(count)]


@pytest.fixture
def clip(tmp_path):
    """A folder of five frames whose names sort by number, not by letter."""
    folder = tmp_path / "clip"
    folder.mkdir()
    for k, frame in zip((1, 2, 9, 10, 11), frames(5), strict=True):
        frame.save(folder / f"frame{k}.png")
    return folder


@pytest.mark.parametrize("model", [QWEN2, QWEN25], ids=["qwen2_vl", "qwen2_5_vl"])
def test_pictures_and_videos_together(model, clip, tmp_path, capsys):
    figures, _, sheet = run(
        tmp_path,
        capsys,
        model,
        "--image",
        GOLDEN / "images" / "qwen_odd.png",
        GOLDEN / "images" / "qwen.png",
        "--video",
        clip,
        "--keep",
        "0.2",
    )
    assert figures["dart"]["visual_tokens_kept"] < 0.25 * figures["unpruned"]["visual_tokens_kept"]
    assert sheet.height > sheet.width / 4


def test_two_frames_of_a_video_share_a_patch():
    """Against the definition: a patch is (channel, frame, row, column); grey values tell the frames apart."""
    reader = load(str(QWEN2), "cpu", None, None).reader
    video = Video(frames(3), 2.0)
    prompt = reader.read("What?", [], [video])
    pixels, grid = prompt.inputs["pixel_values_videos"], prompt.inputs["video_grid_thw"][0].tolist()
    assert grid == [2, 6, 8] and pixels.shape == (2 * 6 * 8, 3 * 2 * 14 * 14)
    mean, std = (torch.tensor(getattr(reader.processor, name)) for name in ("image_mean", "image_std"))
    seen = pixels.view(2, 48, 3, 2, 196) * std[:, None, None] + mean[:, None, None]
    for number, frame in enumerate((0, 1, 2, 2)):  # the odd last frame is shown twice
        colour = torch.tensor(video.frames[frame].getpixel((0, 0))) / 255
        shown = seen[number // 2, :, :, number % 2]
        torch.testing.assert_close(shown, colour[None, :, None].expand_as(shown), atol=1e-4, rtol=0)
    assert [len(view.images) for view in prompt.views] == [2, 1]


def test_seconds_of_a_video(clip, tmp_path):
    video = read_video(str(clip), 4, 8.0)
    assert len(video.frames) == 4 and video.fps == pytest.approx(8 * 4 / 5)
    prompt = load(str(QWEN25), "cpu", None, None).reader.read("What?", [], [video])
    assert prompt.inputs["second_per_grid_ts"].tolist() == pytest.approx([2 / 6.4])
    moving = tmp_path / "moving.gif"
    frames(5)[0].save(moving, save_all=True, append_images=frames(5)[1:], duration=250)
    video = read_video(str(moving), 8, None)
    assert len(video.frames) == 5 and video.fps == pytest.approx(4)
    assert [frame.getpixel((0, 0))[0] for frame in read_video(str(clip), 8, None).frames] == [0, 40, 80, 120, 160]


def test_frames_are_taken_from_the_middles():
    assert spaced(10, 5) == [1, 3, 5, 7, 9] and spaced(3, 8) == [0, 1, 2] and spaced(9, 1) == [4]


def qwen3(folder):
    """A random Qwen3-VL with the recorded tokenizer."""
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    text = {"vocab_size": 352, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 5, "head_dim": 8}
    text |= {"num_attention_heads": 4, "num_key_value_heads": 2, "rope_parameters": rope}
    vision = {"depth": 3, "hidden_size": 16, "intermediate_size": 32, "num_heads": 2, "patch_size": 14}
    vision |= {"out_hidden_size": 32, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
    ids = {"image_token_id": 342, "video_token_id": 343, "vision_start_token_id": 339, "vision_end_token_id": 340}
    Qwen3VLForConditionalGeneration(Qwen3VLConfig(text_config=text, vision_config=vision, **ids)).save_pretrained(
        folder
    )
    limits = {"shortest_edge": 4 * TOKEN_PX**2, "longest_edge": 400 * TOKEN_PX**2}
    Qwen2VLImageProcessorPil(size=limits).save_pretrained(folder)
    _tokenizer(folder)


def onevision(folder):
    """A random LLaVA-OneVision with the recorded tokenizer: squares of 6 x 6 patches."""
    torch.manual_seed(0)
    vision = SiglipVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=24, patch_size=4
    )
    text = Qwen2Config(
        vocab_size=352,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    grid = [[24 * rows, 24 * columns] for rows in range(1, 7) for columns in range(1, 7)]
    LlavaOnevisionForConditionalGeneration(
        LlavaOnevisionConfig(
            vision_config=vision, text_config=text, image_token_id=342, video_token_id=343, image_grid_pinpoints=grid
        )
    ).save_pretrained(folder)
    LlavaOnevisionImageProcessorPil(size={"height": 24, "width": 24}, image_grid_pinpoints=grid).save_pretrained(folder)
    _tokenizer(folder)


def _tokenizer(folder):
    tokenizer = AutoTokenizer.from_pretrained(QWEN2)
    tokenizer.chat_template = json.loads((QWEN2 / "chat_template.json").read_text())["chat_template"]
    tokenizer.save_pretrained(folder)


@pytest.mark.parametrize("build", [qwen3, onevision])
def test_every_other_family(build, clip, tmp_path, capsys):
    """The model itself refuses a wrong number of placeholders; several pictures, large ones, and a video."""
    build(tmp_path / "model")
    few = ("--max-new-tokens", "2", "--keep", "0.3")
    wide = tmp_path / "wide.png"
    Image.new("RGB", (900, 700), "red").save(wide)
    for inputs in (["--image", SCENE], ["--image", wide], ["--image", SCENE, wide], ["--video", clip]):
        figures, _, _ = run(tmp_path, capsys, tmp_path / "model", *few, *inputs)
        assert 0 < figures["dart"]["visual_tokens_kept"] < 0.4 * figures["dart"]["visual_tokens"], inputs


def test_qwen3_writes_the_times_of_the_frames(tmp_path):
    qwen3(tmp_path)
    reader = load(str(tmp_path), "cpu", None, None).reader
    prompt = reader.read("What?", [], [Video(frames(5), 2.0)])
    text = reader.tokenizer.decode(prompt.inputs["input_ids"][0])
    # Frames lie half a second apart; a grid's time is the mean of its two frames, of which the last is one frame twice.
    assert re.findall(r"<([\d.]+) seconds><\|vision_start\|>", text) == ["0.2", "1.2", "2.0"]
    assert text.count("<|vision_end|>") == 3


def test_views_share_out_the_kept_tokens():
    square, rows = (2, 2), [0, 1, NEWLINE, 2, 3, NEWLINE]
    views = [View(["a"], frames(1), square, range(4)), View(["b", "c"], frames(2), square, rows)]
    assert kept_cells(views, [1, 3, 4, 6, 8, 9]) == [[1, 3], [0, 3]]
    with pytest.raises(ValueError, match=r"\[10\] are not among the 10"):
        kept_cells(views, [10])
    sheet = np.asarray(draw_views(views, [0, 4]))
    orange = (sheet == (255, 120, 0)).all(-1)
    columns = np.flatnonzero(orange.any(0))
    assert {int(c) // 64 for c in columns} == {0, 1, 2}, "a panel for the picture and one for each frame"


def test_small_picture_and_large_budget_say_that_nothing_was_pruned(tmp_path, capsys):
    small = tmp_path / "small.png"
    Image.new("RGB", (56, 56), "red").save(small)
    few = ("--max-new-tokens", "2")
    for arguments in (("--image", small), ("--image", SCENE, "--keep", "5000")):
        figures, out, _ = run(tmp_path, capsys, QWEN2, *arguments, *few)
        assert figures["dart"]["visual_tokens_kept"] == figures["dart"]["visual_tokens"]
        assert figures["dart"]["answer"] == figures["unpruned"]["answer"]
        assert "nothing was pruned: there are" in out
    _, out, _ = run(tmp_path, capsys, QWEN2, "--image", SCENE, "--layer", "40", *few)
    assert "layer 40 is beyond the model's 4 decoder layers" in out


@pytest.mark.parametrize("keep", ["0", "-3", "1.5", "0.0", "many", "nan"])
def test_bad_budgets(keep, capsys):
    line = refused(capsys, "--model", QWEN2, "--image", SCENE, "--question", "?", f"--keep={keep}")
    assert "--keep" in line and repr(keep) in line


def test_bad_pictures_and_videos(tmp_path, capsys):
    start = ("--model", QWEN2, "--question", "?")
    text, still, cut, film = (tmp_path / name for name in ("a.png", "b.png", "c.gif", "d.mp4"))
    text.write_text("no picture")
    Image.new("RGB", (30, 30)).save(still)
    noise = [Image.effect_noise((90, 90), 60) for _ in range(3)]
    noise[0].save(cut, save_all=True, append_images=noise[1:], duration=250)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    film.write_bytes(b"no film")
    (tmp_path / "empty").mkdir()
    assert "nothing to look at" in refused(capsys, *start)
    assert "missing.png does not exist" in refused(capsys, *start, "--image", tmp_path / "missing.png")
    assert "a.png cannot be read" in refused(capsys, *start, "--image", text)
    assert "missing.mp4 does not exist" in refused(capsys, *start, "--video", tmp_path / "missing.mp4")
    assert "c.gif cannot be read" in refused(capsys, *start, "--video", cut)
    assert "d.mp4" in refused(capsys, *start, "--video", film)
    assert "still picture: give it as --image" in refused(capsys, *start, "--video", still)
    assert "has no pictures" in refused(capsys, *start, "--video", tmp_path / "empty")
    assert "differ in size" in refused(capsys, *start, "--video", GOLDEN / "images")
    llava = ("--model", MODELS / "llava-tiny", "--question", "?")
    (tmp_path / "empty" / "1.png").write_bytes(still.read_bytes())
    assert "take no videos" in refused(capsys, *llava, "--video", tmp_path / "empty")


def test_a_film_without_its_package_names_the_extra(tmp_path, monkeypatch, capsys):
    film = tmp_path / "d.mp4"
    film.write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "av", None)
    assert "dart-vlm[video]" in refused(capsys, "--model", QWEN2, "--question", "?", "--video", film)


def test_bad_models(tmp_path, capsys):
    rest = ("--question", "?", "--image", SCENE)
    assert "does not exist" in refused(capsys, "--model", tmp_path / "nowhere", *rest)
    assert "no config.json" in refused(capsys, "--model", tmp_path, *rest)
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    line = refused(capsys, "--model", tmp_path, *rest)
    assert "'bert'" in line and all(f" {kind}" in line for kind in ("qwen2_5_vl", "qwen3_vl", "llava_llama", "llava"))
    (tmp_path / "config.json").write_text((QWEN2 / "config.json").read_text())
    assert "cannot be loaded" in refused(capsys, "--model", tmp_path, *rest)


def test_bad_options(tmp_path, capsys):
    start = ("--model", QWEN2, "--image", SCENE, "--question", "?")
    assert "expected cpu, cuda" in refused(capsys, *start, "--device", "toaster")
    assert "--save-overlay" in refused(capsys, *start, "--save-overlay", tmp_path / "out.xyz")
    assert "folder that exists" in refused(capsys, *start, "--json", tmp_path / "none" / "out.json")
    assert "--strategy" in refused(capsys, *start, "--strategy", "best")
    assert "at least one pivot" in refused(capsys, *start, "--image-pivots", "0", "--text-pivots", "0")
    assert "--frames" in refused(capsys, *start, "--frames", "0")
    if not torch.cuda.is_available():
        assert "0 CUDA devices" in refused(capsys, *start, "--device", "cuda")


def test_importing_dart_leaves_llava_alone():
    import subprocess

    code = "import sys, dart, dart.cli.app; sys.exit('llava' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    assert dart.__all__
