"""The page of `python -m llava.serve.gradio_web_server`: what is behind it, and in a browser (make test-demo)."""

from __future__ import annotations

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from dart.cli import config_of, messages, parser
from dart.cli.loading import load
from dart.cli.measure import answer
from dart.media import read_image
from dart.utils import UserError
from llava.serve.gradio_web_server import LONGEST_QUESTION, SHORT, Asked, Demo, main

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "playground" / "models"
SCENES = ROOT / "playground" / "data" / "mini" / "textvqa" / "train_images"
CLIPS = ROOT / "playground" / "data" / "mini" / "video" / "videos"
SCENE = Asked(str(SCENES / "scene_0000.jpg"), None, f"What number is on the green sign?{SHORT}", 64, "dart")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
START_S, DEADLINE_S = 120, 60


def demo_of(name: str) -> Demo:
    return Demo(load(str(MODELS / name), "cpu", None, None), layer=2, frames=4, warm_up=0, max_new_tokens=8)


@pytest.fixture(scope="module")
def demo() -> Demo:
    return demo_of("llava-tiny")


def command_line_answers(demo: Demo, asked: Asked) -> list[str]:
    """What `python -m dart --exact` answers, one after the other and without a stream."""
    words = ["--model", "m", "--image", "i", "--question", "q", "--keep", str(asked.keep), "--exact"]
    config = config_of(parser().parse_args([*words, "--strategy", asked.strategy]))
    prompt = demo.loaded.prompt(messages(asked.question, 1, 0), [read_image(asked.image)], [])
    ids = [answer(demo.loaded.model, prompt, setting, 8).ids for setting in (None, config)]
    return [demo.loaded.tokenizer.decode(each, skip_special_tokens=True).strip() for each in ids]


def test_both_answers_grow_and_are_those_of_the_command_line(demo: Demo) -> None:
    seen = list(demo.ask(SCENE))
    assert [seen[-1].before, seen[-1].after] == command_line_answers(demo, SCENE)
    for earlier, later in zip(seen, seen[1:], strict=False):
        assert later.before.startswith(earlier.before) and later.after.startswith(earlier.after)
    assert [seen[0].before, seen[0].after] == ["7", ""] and seen[-1].before == "78"
    assert all(each.figures is None for each in seen[:-1])
    assert "**64 of 576 visual tokens**" in seen[-1].figures and "KV cache after prefill" in seen[-1].figures


def test_fewer_tokens_and_other_methods_draw_another_picture(demo: Demo) -> None:
    def light(asked: Asked) -> float:
        return float(np.asarray(list(demo.ask(asked))[-1].kept, dtype=float).mean())

    whole, few = light(replace(SCENE, keep=576)), light(replace(SCENE, keep=16))
    assert few < 0.7 * whole
    pictures = [list(demo.ask(replace(SCENE, strategy=name)))[-1].kept for name in ("dart", "uniform")]
    assert (np.asarray(pictures[0]) != np.asarray(pictures[1])).any()


def test_asking_for_all_tokens_says_that_nothing_was_dropped(demo: Demo) -> None:
    assert "nothing was pruned" in list(demo.ask(replace(SCENE, keep=576)))[-1].figures


def test_visitors_at_the_same_time_get_what_they_get_alone(demo: Demo) -> None:
    asked = [replace(SCENE, keep=8), replace(SCENE, image=str(SCENES / "scene_0001.jpg"), strategy="random")]
    alone = [list(demo.ask(each))[-1] for each in asked]
    streams = [demo.ask(each) for each in asked]
    last = [None, None]
    while any(stream is not None for stream in streams):
        for k, stream in enumerate(streams):
            if stream is not None and (shown := next(stream, None)) is not None:
                last[k] = shown
            else:
                streams[k] = None
    for found, expected in zip(last, alone, strict=True):
        assert (found.before, found.after) == (expected.before, expected.after)
        assert (np.asarray(found.kept) == np.asarray(expected.kept)).all()


def test_a_visitor_who_leaves_leaves_nothing_behind(demo: Demo) -> None:
    expected = list(demo.ask(SCENE))[-1]
    for steps in (1, len(list(demo.ask(SCENE))) - 2):  # in the first answer; in the pruned one
        leaving = demo.ask(SCENE)
        for _ in range(steps):
            next(leaving)
        leaving.close()
        found = list(demo.ask(SCENE))[-1]
        assert (found.before, found.after) == (expected.before, expected.after)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image": None}, "there is nothing to look at: upload a picture"),
        ({"image": "none.png"}, "image none.png does not exist"),
        ({"image": __file__}, "test_gradio.py"),
        ({"question": "  "}, "there is no question"),
        ({"question": "x" * (LONGEST_QUESTION + 1)}, f"at most {LONGEST_QUESTION}"),
        ({"question": "7" * (LONGEST_QUESTION - 1)}, "tokens of the prompt"),
        ({"keep": 0}, "tokens to keep: expected a whole number of 1 or more, got 0"),
        ({"keep": -3}, "keep"),
        ({"keep": None}, "tokens to keep: expected a whole number of 1 or more, got nothing"),
        ({"keep": "many"}, "1 or more, got 'many'"),
        ({"keep": float("nan")}, "1 or more, got nan"),
        ({"keep": float("inf")}, "1 or more, got inf"),
        ({"keep": 2.5}, "1 or more, got 2.5"),
        ({"keep": True}, "1 or more, got True"),
        ({"question": None}, "there is no question"),
        ({"question": ["a"]}, "there is no question"),
        ({"strategy": ["dart"]}, "no method ['dart']"),
        ({"strategy": "dort"}, "no method 'dort'"),
        ({"strategy": "downsample"}, "no method 'downsample'"),
        ({"video": str(CLIPS)}, "video"),
    ],
)
def test_bad_input_is_one_line_and_the_page_lives(demo: Demo, change: dict, said: str) -> None:
    with pytest.raises((UserError, ValueError, TypeError)) as error:
        list(demo.ask(replace(SCENE, **change)))
    assert said in str(error.value) and "\n" not in str(error.value)
    assert list(demo.ask(SCENE))[-1].figures


def test_a_bad_upload_is_named_as_the_visitor_does(demo: Demo, tmp_path: Path) -> None:
    broken = tmp_path / "holiday.png"
    broken.write_bytes(b"no picture")
    for upload in ({"image": str(broken)}, {"image": None, "video": str(broken)}):
        with pytest.raises(UserError) as error:
            list(demo.ask(replace(SCENE, **upload)))
        assert "holiday.png" in str(error.value) and str(tmp_path) not in str(error.value)


def test_a_port_that_cannot_be_had_is_told_before_a_model_is_read(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "gradio", ModuleType("gradio"))
    monkeypatch.setattr("llava.serve.gradio_web_server.load", lambda *_: pytest.fail("the model was read"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for words, said in (
            (["--port", "70000"], "from 1 to 65535, got '70000'"),
            (["--port", port], f"port {port}"),
            (["--host", "192.0.2.1"], "192.0.2.1"),
        ):
            with pytest.raises(SystemExit) as ended:
                main(words)
            assert ended.value.code == 2 and said in capsys.readouterr().err


def test_what_the_model_cannot_do_is_not_offered(demo: Demo) -> None:
    assert "downsample" in demo.refused and "downsample" not in demo.strategies
    assert {"dart", "fastv", "spread", "random"} <= set(demo.strategies) and not demo.takes_videos


def test_a_video_is_drawn_frame_by_frame() -> None:
    demo = demo_of("qwen2_5-vl-tiny")
    clip = str(sorted(CLIPS.iterdir())[0])
    assert demo.takes_videos and demo.visual_tokens(None, clip) > demo.visual_tokens(SCENE.image, None) > 0
    shown = list(demo.ask(Asked(None, clip, "What moves?", 20, "dart")))[-1]
    assert "**20 of " in shown.figures and shown.kept.width > 2 * shown.kept.height / 4


def test_without_gradio_or_a_model_it_is_one_line(
    capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--controller-url", "http://localhost:10000"])
    assert ended.value.code == 2 and "--controller-url" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit) as ended:
        main([])
    assert ended.value.code == 2 and "[demo]" in capsys.readouterr().err


@pytest.fixture(scope="module")
def address() -> str:
    """The page of the embedded model, in a process of its own."""
    pytest.importorskip("gradio")
    with socket.socket() as place:
        place.bind(("127.0.0.1", 0))
        port = place.getsockname()[1]
    words = ["--port", str(port), "--warm-up", "0", "--max-new-tokens", "8"]
    server = subprocess.Popen([sys.executable, "-m", "llava.serve.gradio_web_server", *words], cwd=ROOT)
    url = f"http://127.0.0.1:{port}/"
    try:
        ends = time.monotonic() + START_S
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except OSError:
                assert server.poll() is None and time.monotonic() < ends, "the page does not start"
                time.sleep(0.2)
        yield url
    finally:
        server.terminate()
        server.wait(DEADLINE_S)


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium here")
def test_in_a_browser(address: str, tmp_path: Path) -> None:
    """Upload, ask, move the slider, see the picture change; bad files and no picture; nothing is fetched elsewhere."""
    sync_api = pytest.importorskip("playwright.sync_api")
    expect = sync_api.expect
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n no image")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1360, "height": 1080})
        page.set_default_timeout(DEADLINE_S * 1000)
        asked_for: list[str] = []
        page.on("request", lambda request: asked_for.append(request.url))
        page.goto(address)
        before, after = (page.locator(f"#{name} textarea") for name in ("before", "after"))
        page.locator("#ask").click()
        expect(page.get_by_text("there is no question: type one")).to_be_visible()
        page.locator("#question textarea").fill(SCENE.question)
        page.locator("#ask").click()
        expect(page.get_by_text("there is nothing to look at: upload a picture")).to_be_visible()
        page.locator("#picture input[type=file]").set_input_files(tmp_path / "broken.png")
        expect(page.get_by_text("broken.png")).to_be_visible()

        page.reload()
        page.locator("#picture input[type=file]").set_input_files(SCENE.image)
        expect(page.get_by_text("Visual tokens to keep, of 576")).to_be_visible()
        page.locator("#question textarea").fill(SCENE.question)
        page.locator("#ask").click()
        expect(page.locator("#figures")).to_contain_text("128 of 576 visual tokens")
        expect(before).to_have_value("78")
        expect(after).to_have_value("78")
        first = _pixels(page)
        page.screenshot(path=tmp_path / "demo.png")

        page.locator("#keep input[type=range]").focus()
        slider = page.locator("#keep input[type=range]").bounding_box()
        page.mouse.click(slider["x"] + 0.03 * slider["width"], slider["y"] + slider["height"] / 2)
        expect(page.locator("#figures")).not_to_contain_text("128 of 576 visual tokens")
        second = _pixels(page)
        assert second.mean() < 0.9 * first.mean()
        browser.close()
    elsewhere = [url for url in asked_for if not url.startswith((address, "data:", "blob:"))]
    assert asked_for and not elsewhere


def _pixels(page: object) -> np.ndarray:
    """The picture of kept patches, as it was sent."""
    source = page.locator("#kept img").get_attribute("src")
    with urllib.request.urlopen(source, timeout=DEADLINE_S) as answer:
        return np.asarray(Image.open(answer).convert("RGB"), dtype=float)
