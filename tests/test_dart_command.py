"""`python -m dart`, and the README's example for a user's own model."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from contextlib import nullcontext
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import pytest
import tiny_checkpoints
import torch
from PIL import Image
from qwen_golden import RECORDS, sample
from transformers import AutoModelForImageTextToText, AutoProcessor

import dart
from dart import utils
from dart.cli import loading, main, messages
from dart.cli.loading import load
from dart.media import MAX_SIDE, Video, read_image, read_video, spaced
from dart.utils import UserError
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


@pytest.fixture(autouse=True)
def plugins(monkeypatch):
    """The plug-in that pyproject.toml declares, whether or not this version of the project is installed."""
    declared = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    found = re.findall(rf'\[project.entry-points."{loading.GROUP}"\]\n(\S+) = "(\S+)"\n', declared)
    points = [EntryPoint(name, value, loading.GROUP) for name, value in found]
    assert points
    monkeypatch.setattr(utils, "entry_points", lambda group: points if group == loading.GROUP else [])


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
    files += ["--max-new-tokens", "4", "--question", QUESTION]
    main(["--model", str(model), *files, *map(str, arguments)])
    return json.loads(figures.read_text()), capsys.readouterr().out, Image.open(overlay)


def refused(capsys, *arguments):
    """The one line on stderr of a command that ends with code 2."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main([str(a) for a in arguments])
    assert ended.value.code == 2
    (line,) = (each for each in capsys.readouterr().err.splitlines() if "[transformers]" not in each)
    assert line.startswith("error: ")
    return line


def prompt_of(folder, images=(), videos=(), question="What?"):
    """(what was loaded, its prompt)."""
    loaded = load(str(folder), "cpu", None, None)
    return loaded, loaded.prompt(messages(question, len(images), len(videos)), list(images), list(videos))


def test_readme_example_runs_as_written(converted, capsys):
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
    """The tokenizers split the text after an image differently, so that a few of the kept tokens differ."""
    arguments = ("--image", SCENE, "--keep", "0.3")
    own, _, _ = run(tmp_path, capsys, MODELS / name, *arguments)
    other, _, _ = run(tmp_path, capsys, converted[name], *arguments)
    assert own["unpruned"]["answer"] == own["dart"]["answer"] == other["dart"]["answer"] == RIGHT
    assert own["dart"]["visual_tokens_kept"] == other["dart"]["visual_tokens_kept"]
    same = sorted(set(own["kept"]) & set(other["kept"]))
    assert len(same) > 0.8 * len(own["kept"])
    one, two = (prompt_of(m, [read_image(str(SCENE))])[1].views() for m in (MODELS / name, converted[name]))
    assert [(v.grid, list(v.cells)) for v in one] == [(v.grid, list(v.cells)) for v in two]
    difference = np.asarray(draw_views(one, same)).astype(int) - np.asarray(draw_views(two, same))
    assert np.abs(difference).mean() < 1, "grey levels: Pillow and torchvision scale a little differently"


@pytest.mark.parametrize("name", ["llava-tiny", "llava-next-tiny", "qwen2-vl-tiny", "qwen2_5-vl-tiny"])
@pytest.mark.parametrize("config", [None, dart.DartConfig(keep=0.4)], ids=["unpruned", "pruned"])
@torch.no_grad()
def test_a_batch_of_two_lengths_in_transformers_format(name, config, converted):
    """Each row answers as it does alone: prompts are padded on the left."""
    folder = converted.get(name, MODELS / name)
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    questions = (QUESTION, "What number is written on the sign that is blue, in digits and nothing else?")
    texts = [processor.apply_chat_template(messages(text, 1, 0), add_generation_prompt=True) for text in questions]
    image = read_image(str(SCENE))

    def answers(rows):
        inputs = processor(text=rows, images=[image] * len(rows), padding=True, return_tensors="pt")
        assert len(rows) == 1 or not inputs["attention_mask"][0, 0], "the shorter prompt begins with padding"
        out = model.generate(**inputs, max_new_tokens=4, do_sample=False)[:, inputs["input_ids"].shape[1] :]
        return processor.batch_decode(out, skip_special_tokens=True)

    with dart.prune(model, config) if config else nullcontext():
        both = answers(texts)
        assert all(both) and both == [answers([text])[0] for text in texts]


def test_prompt_of_a_converted_llava_is_the_original_one(converted):
    loaded, prompt = prompt_of(converted["llava-tiny"], [read_image(str(SCENE))] * 2, question="What is it?")
    ids = prompt.inputs["input_ids"][0]
    text = loaded.tokenizer.decode(ids, skip_special_tokens=False).removeprefix("<s>")
    wanted = build_prompt("What is it?", None, "vicuna_v1", 2).replace("<image>", "<image>" * 576)
    assert "".join(text.split()) == "".join(wanted.split())
    assert ids[0] == loaded.tokenizer.bos_token_id != ids[1]


def test_figures_are_those_of_the_model_itself(tmp_path, capsys):
    """Tokens and bytes beside a count by hand: 576 visual tokens, K = 2 of the model's layers hold them all."""
    figures, out, _ = run(tmp_path, capsys, MODELS / "llava-tiny", "--image", SCENE, "--keep", "128")
    config = load(str(MODELS / "llava-tiny"), "cpu", None, None).model.config
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
def test_qwen_images_become_the_recorded_inputs(family):
    """Ids and grids of the recorded processor; its pixels but for grey levels that torchvision rounds otherwise."""
    level = 1 / 255 / 0.26  # CLIP's smallest standard deviation
    for name, record in RECORDS[family]["samples"].items():
        wanted = sample(family, name)
        images = [Image.open(GOLDEN / "images" / f"{each}.png").convert("RGB") for each in record["images"]]
        _, prompt = prompt_of({"qwen2_vl": QWEN2, "qwen2_5_vl": QWEN25}[family], images, question=QUESTION)
        difference = (prompt.inputs["pixel_values"] - wanted["pixel_values"]).abs()
        assert difference.max() < 2 * level and difference.mean() < 0.01 * level
        assert torch.equal(prompt.inputs["image_grid_thw"], wanted["image_grid_thw"])
        count = int((wanted["mm_token_type_ids"] == 1).sum())
        assert len(prompt.positions) == count == sum(len(view.cells) for view in prompt.views())


def frames(count, size=(112, 84)):
    """Images of one colour each."""
    return [Image.new("RGB", size, (40 * k, 255 - 40 * k, 20)) for k in range(count)]


def film(count, total, fps):
    """A video of `count` frames, evenly taken out of `total`."""
    return Video(frames(count), total, fps, spaced(total, count))


@pytest.fixture
def clip(tmp_path):
    """A folder of five frames whose names sort by number, not by letter."""
    folder = tmp_path / "clip"
    folder.mkdir()
    for k, frame in zip((1, 2, 9, 10, 11), frames(5), strict=True):
        frame.save(folder / f"frame{k}.png")
    return folder


@pytest.mark.parametrize("model", [QWEN2, QWEN25], ids=["qwen2_vl", "qwen2_5_vl"])
def test_images_and_videos_together(model, clip, tmp_path, capsys):
    pair = [GOLDEN / "images" / name for name in ("qwen_odd.png", "qwen.png")]
    figures, _, sheet = run(tmp_path, capsys, model, "--image", *pair, "--video", clip, "--keep", "0.2")
    assert figures["dart"]["visual_tokens_kept"] < 0.25 * figures["unpruned"]["visual_tokens_kept"]
    assert sheet.height > sheet.width / 4


def test_views_of_videos_and_seconds():
    _, prompt = prompt_of(QWEN25, videos=[film(3, 5, 8.0)])
    assert [view.titles for view in prompt.views()] == [["video 1, frame 1", "video 1, frame 2"], ["video 1, frame 3"]]
    assert prompt.inputs["second_per_grid_ts"].tolist() == pytest.approx([2 / (8 * 3 / 5)])


def test_qwen3_writes_the_times_of_the_frames(tmp_path):
    tiny_checkpoints.qwen3_vl(tmp_path)
    loaded, prompt = prompt_of(tmp_path, videos=[film(5, 5, 2.0)])
    text = loaded.tokenizer.decode(prompt.inputs["input_ids"][0])
    # Frames lie half a second apart; a grid's time is the mean of its two frames, of which the last is one frame twice.
    assert re.findall(r"<([\d.]+) seconds><\|vision_start\|>", text) == ["0.2", "1.2", "2.0"]


@pytest.mark.parametrize("family", ["qwen3_vl", "llava_onevision"])
def test_more_families(family, clip, tmp_path, capsys):
    getattr(tiny_checkpoints, family)(tmp_path / "model")
    wide = tmp_path / "wide.png"
    Image.new("RGB", (900, 700), "red").save(wide)
    for inputs in (["--image", SCENE], ["--image", wide], ["--image", SCENE, wide], ["--video", clip]):
        figures, _, _ = run(tmp_path, capsys, tmp_path / "model", "--keep", "0.3", *inputs)
        assert 0 < figures["dart"]["visual_tokens_kept"] < 0.4 * figures["dart"]["visual_tokens"], inputs


@pytest.mark.parametrize(
    ("family", "grids"),
    [
        ("qwen3_vl", [[(3, 2)], [(3, 2), (2, 4)], [(3, 4), (3, 4)]]),
        ("llava_onevision", [[(6, 6), (20, 15)], [(6, 6), (6, 6)], [(3, 3)] * 4]),
        ("internvl", [[(3, 3)] * 3, [(3, 3)] * 6, [(3, 3)] * 4]),
        ("mistral3", [[(5, 4)], [(5, 4), (3, 5)], None]),
        ("idefics3", [[(3, 3)] * 5, [(3, 3)] * 8, None]),
        ("gemma3", [[(4, 4)], [(4, 4)] * 2, None]),
    ],
)
def test_views_of_every_layout(family, grids, tmp_path):
    """Every visual token has a cell; the model itself refuses a wrong number of placeholders."""
    getattr(tiny_checkpoints, family)(tmp_path)
    tall, wide = Image.new("RGB", (60, 84), "red"), Image.new("RGB", (100, 52), "blue")
    cases = ([tall], []), ([tall, wide], []), ([], [film(4, 4, 2.0)])
    for (images, videos), wanted in zip(cases, grids, strict=True):
        if wanted is None:
            with pytest.raises(UserError, match="take no videos"):
                prompt_of(tmp_path, images, videos)
            continue
        loaded, prompt = prompt_of(tmp_path, images, videos)
        views = prompt.views()
        assert [view.grid for view in views] == wanted
        assert sum(len(view.cells) for view in views) == len(prompt.positions)
        loaded.model(**prompt.inputs)


def test_a_tile_is_drawn_as_the_model_sees_it(converted):
    """LLaVA-1.5's middle square, and the two images of a prompt in their order."""
    image = Image.new("RGB", (600, 300), "red")
    image.paste("blue", (150, 0, 450, 300))
    _, prompt = prompt_of(converted["llava-tiny"], [image, frames(2)[1]])
    first, second = prompt.views()
    pads = load(str(converted["llava-tiny"]), "cpu", None, None).processor.image_processor.do_pad
    assert np.asarray(first.images[0])[168, 168].tolist() == [0, 0, 255]
    assert (np.asarray(first.images[0])[168, 20].tolist() == [255, 0, 0]) == bool(pads)
    assert np.asarray(second.images[0])[168, 168].tolist() == [40, 215, 20]
    assert (first.titles, second.titles) == (["image 1"], ["image 2"])


def test_frames_are_taken_from_the_middles(clip, tmp_path):
    assert spaced(10, 5) == [1, 3, 5, 7, 9] and spaced(3, 8) == [0, 1, 2] and spaced(9, 1) == [4]
    moving = tmp_path / "moving.gif"
    frames(5)[0].save(moving, save_all=True, append_images=frames(5)[1:], duration=250)
    assert_second_and_fourth(clip, 2.0)
    assert_second_and_fourth(moving, 4.0)
    assert read_video(str(clip), 2, 8.0).fps == 8


def test_frames_of_a_film(tmp_path):
    av = pytest.importorskip("av")
    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=4)
        stream.width, stream.height, stream.pix_fmt = 112, 84, "yuv420p"
        for frame in frames(5):
            container.mux(stream.encode(av.VideoFrame.from_image(frame)))
        container.mux(stream.encode())
    assert_second_and_fourth(tmp_path / "film.mp4", 4.0)


def assert_second_and_fourth(path, fps):
    """Of the five frames, two are read."""
    video = read_video(str(path), 2, None)
    assert (video.total, video.indices, video.fps) == (5, [1, 3], pytest.approx(fps))
    assert [frame.getpixel((9, 9))[0] for frame in video.frames] == pytest.approx([40, 120], abs=8)


def test_views_share_out_the_kept_tokens():
    square, rows = (2, 2), [0, 1, NEWLINE, 2, 3, NEWLINE]
    views = [View(["a"], frames(1), square, range(4)), View(["b", "c"], frames(2), square, rows)]
    assert kept_cells(views, [1, 3, 4, 6, 8, 9]) == [[1, 3], [0, 3]]
    with pytest.raises(ValueError, match=r"\[10\] are not among the 10"):
        kept_cells(views, [10])
    sheet = np.asarray(draw_views(views, [0, 4]))
    orange = (sheet == (255, 120, 0)).all(-1)
    columns = np.flatnonzero(orange.any(0))
    assert {int(c) // 64 for c in columns} == {0, 1, 2}, "a panel for the image and one for each frame"


def test_small_image_and_large_budget_say_that_nothing_was_pruned(tmp_path, capsys):
    small = tmp_path / "small.png"
    Image.new("RGB", (56, 56), "red").save(small)
    for arguments in (("--image", small), ("--image", SCENE, "--keep", "5000")):
        figures, out, _ = run(tmp_path, capsys, QWEN2, *arguments)
        assert figures["dart"]["visual_tokens_kept"] == figures["dart"]["visual_tokens"]
        assert figures["dart"]["answer"] == figures["unpruned"]["answer"]
        assert "nothing was pruned: there are" in out
    _, out, _ = run(tmp_path, capsys, QWEN2, "--image", SCENE, "--layer", "40")
    assert "layer 40 is beyond the model's 4 decoder layers" in out


@pytest.mark.parametrize("keep", ["0", "-3", "1.5", "0.0", "many", "nan"])
def test_bad_budgets(keep, capsys):
    line = refused(capsys, "--model", QWEN2, "--image", SCENE, "--question", "?", f"--keep={keep}")
    assert "--keep" in line and repr(keep) in line


def png_header(width, height):
    """The first bytes of a PNG of that size: enough for Pillow to read its size."""
    return b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes(37)


def test_bad_images_and_videos(tmp_path, capsys):
    start = ("--model", QWEN2, "--question", "?")
    text, still, cut, movie, bomb, thin, long = (
        tmp_path / name for name in ("a.png", "b.png", "c.gif", "d.mp4", "e.png", "f.png", "g.png")
    )
    text.write_text("no image")
    Image.new("RGB", (30, 30)).save(still)
    noise = [Image.effect_noise((90, 90), 60) for _ in range(3)]
    noise[0].save(cut, save_all=True, append_images=noise[1:], duration=250)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    movie.write_bytes(b"no film")
    bomb.write_bytes(png_header(100_000, 100_000))
    Image.new("RGB", (3, 2000)).save(thin)
    Image.new("RGB", (MAX_SIDE + 1, 100)).save(long)
    (tmp_path / "empty").mkdir()
    assert "nothing to look at" in refused(capsys, *start)
    assert "missing.png does not exist" in refused(capsys, *start, "--image", tmp_path / "missing.png")
    assert "a.png cannot be read" in refused(capsys, *start, "--image", text)
    assert "e.png cannot be read" in refused(capsys, *start, "--image", bomb)
    assert "f.png has 3 x 2000 pixels" in refused(capsys, *start, "--image", thin)
    assert f"g.png has {MAX_SIDE + 1} x 100 pixels" in refused(capsys, *start, "--image", long)
    assert "missing.mp4 does not exist" in refused(capsys, *start, "--video", tmp_path / "missing.mp4")
    assert "c.gif cannot be read" in refused(capsys, *start, "--video", cut)
    assert "d.mp4" in refused(capsys, *start, "--video", movie)
    assert "still image: give it as --image" in refused(capsys, *start, "--video", still)
    assert "has no images" in refused(capsys, *start, "--video", tmp_path / "empty")
    assert "differ in size" in refused(capsys, *start, "--video", GOLDEN / "images")
    (tmp_path / "empty" / "1.png").write_bytes(still.read_bytes())
    llava = ("--model", MODELS / "llava-tiny", "--question")
    assert "take no videos" in refused(capsys, *llava, "?", "--video", tmp_path / "empty")
    assert "2 image placeholders for 1 images" in refused(capsys, *llava, "<image>", "--image", SCENE)
    assert "refuses this prompt" in refused(capsys, *start[:2], "--image", SCENE, "--question", "<|image_pad|>")


def test_a_film_without_its_package_names_the_extra(tmp_path, monkeypatch, capsys):
    movie = tmp_path / "d.mp4"
    movie.write_bytes(b"x")
    monkeypatch.setitem(sys.modules, "av", None)
    assert "pip install '.[hf]'" in refused(capsys, "--model", QWEN2, "--question", "?", "--video", movie)


def test_bad_models(tmp_path, monkeypatch, capsys):
    rest = ("--question", "?", "--image", SCENE)
    assert "does not exist" in refused(capsys, "--model", tmp_path / "nowhere", *rest)
    assert "config.json" in refused(capsys, "--model", tmp_path, *rest)
    for text in ('{"model_type": "bert"}', "{}", "[]", "no JSON"):
        (tmp_path / "config.json").write_text(text)
        line = refused(capsys, "--model", tmp_path, *rest)
        assert str(tmp_path) in line
    (tmp_path / "config.json").write_text((QWEN2 / "config.json").read_text())
    assert "cannot be loaded" in refused(capsys, "--model", tmp_path, *rest)
    monkeypatch.setattr(utils, "entry_points", lambda group: [])
    line = refused(capsys, "--model", MODELS / "llava-tiny", *rest)
    assert "'llava_llama'" in line and "dart.loaders: none" in line


def test_a_family_that_dart_does_not_know_is_one_line(tmp_path, monkeypatch, capsys):
    def unknown(model, config):
        raise TypeError("dart.prune does not know this")

    monkeypatch.setattr(dart, "prune", unknown)
    assert "does not know this" in refused(capsys, "--model", QWEN2, "--image", SCENE, "--question", "?")


def test_bad_options(tmp_path, capsys):
    start = ("--model", QWEN2, "--image", SCENE, "--question", "?")
    for device in ("toaster", "meta", "cuda:99"):
        assert f"--device {device} is not here" in refused(capsys, *start, "--device", device)
    assert "--save-overlay" in refused(capsys, *start, "--save-overlay", tmp_path / "out.xyz")
    assert "folder that exists" in refused(capsys, *start, "--json", tmp_path / "none" / "out.json")
    assert "known: cdpruner" in refused(capsys, *start, "--strategy", "best")
    assert "at least one pivot" in refused(capsys, *start, "--image-pivots", "0", "--text-pivots", "0")
    assert "--frames" in refused(capsys, *start, "--frames", "0")
    assert "--seed" in refused(capsys, *start, "--seed", "9" * 30)
    assert "--dtype" in refused(capsys, *start, "--dtype", "int8")
    assert "--num_beams" in refused(capsys, *start, "--num_beams", "0")
    if not torch.cuda.is_available():
        assert "0 CUDA devices" in refused(capsys, *start, "--device", "cuda")


def test_imports_point_one_way():
    code = "import sys, dart.cli.loading, dart.cli.measure, dart.views; sys.exit('llava' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
