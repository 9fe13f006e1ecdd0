"""Random bad files and requests: whatever is in them, one line and no traceback, in bounded time and memory.

About 100 cases each; `make fuzz` (DART_FUZZ=2000 in the environment) runs more.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import io
import json
import os
import struct
import time
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoTokenizer

from dart.compare.data import own_data
from dart.compat import from_original
from dart.config import DartConfig
from dart.media import read_image, read_video
from dart.serve.chat import ChatLimits, read_chat
from dart.serve.errors import ApiError
from dart.serve.images import ImageLimits
from dart.serve.images import read_image as read_sent
from dart.utils import UserError, read_json
from llava.conversation import get_template
from llava.eval import tasks
from llava.eval.engine.examples import read_question_file
from llava.files import EMBEDDED_DATA, EMBEDDED_MODEL
from llava.mm_utils import load_image
from llava.model.builder import TOKENIZER_FILES, load_pretrained_model
from llava.train.data import Conversations, Encoder

CASES = int(os.environ.get("DART_FUZZ", "100"))
MOST_BYTES, MOST_SECONDS = 600 << 20, 5  # that one case may take; of computing, however busy the machine is
fuzz = settings(
    max_examples=CASES,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)

SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.sampled_from([-1, 0, 2**31, 2**63, 10**400, float("nan"), float("inf"), 1e308]),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["", "<image>", "\ud800", "\0", "../../etc/passwd", "a.png", "human", "gpt", "user", "text", "A"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


def objects(*names: str) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of these fields, and others."""
    return st.dictionaries(st.sampled_from(names) | st.text(max_size=4), VALUES, max_size=len(names) + 1)


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A file with some bytes replaced, cut or put in."""
    data = bytearray(content)
    for _ in range(draw(st.integers(0, 4))):
        start = draw(st.integers(0, len(data)))
        length = draw(st.sampled_from([0, 1, 4, len(data)]))
        data[start : start + length] = draw(st.binary(max_size=6))
    return bytes(data)


@st.composite
def changed(draw: st.DrawFn, value: Any) -> Any:
    """A JSON value with something in it left out or replaced."""
    if isinstance(value, dict) and value and draw(st.integers(0, 4)):
        key = draw(st.sampled_from(sorted(value)[:6]))
        kept = {name: each for name, each in value.items() if name != key}
        return kept if not draw(st.integers(0, 3)) else kept | {key: draw(changed(value[key]))}
    if isinstance(value, list) and value and draw(st.integers(0, 4)):
        return [draw(changed(value[0])), *value[1:]]
    return draw(VALUES)


def lines_of(rows: list[Any]) -> bytes:
    return "\n".join(json.dumps(row) for row in rows).encode()


def refused_or_done(run: Callable[[], Any], *more: type[Exception]) -> Any:
    """What `run` returns, or None for what a command turns into one line, and for `more`.

    Fails for another exception, and for too much memory or time.
    """
    started = time.process_time()
    tracemalloc.start()
    try:
        return run()
    except (UserError, ValueError, OSError, *more) as error:
        assert str(error)
        return None
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < MOST_BYTES and time.process_time() - started < MOST_SECONDS


ROWS = st.lists(objects("question_id", "image", "text", "question", "answer", "answers", "images", "id"), max_size=3)


@fuzz
@given(ROWS.map(lines_of) | st.binary(max_size=60))
@example(b'{"question_id": 1, "image": "a.png", "text": "\\ud800"}')
@example(b'{"question": "?", "answer": "A", "image": "\\u0000"}')
@example(b"[" * 100_000)
def test_question_files(tmp_path, content):
    path = tmp_path / "questions.jsonl"
    path.write_bytes(content)
    examples = refused_or_done(lambda: read_question_file(path, tmp_path))
    for each in examples or ():
        each.text.encode()
        refused_or_done(each.picture)
    data = refused_or_done(lambda: own_data(path))
    for sample in data.samples if data else ():
        sample.question.encode()
        refused_or_done(sample.pictures)
        refused_or_done(lambda sample=sample: sample.films(2))


JSON_FILES = {
    name: file
    for name, file in {
        "textvqa": "TextVQA_0.5.1_val.json",
        "gqa": "data/testdev_balanced_questions.json",
        "vizwiz": "val.json",
        "seed": "SEED-Bench.json",
        "ocrbench": "OCRBench.json",
        "sqa": "problems.json",
    }.items()
    if (EMBEDDED_DATA / tasks.get(name).folder / file).is_file()
}


@pytest.mark.parametrize("name", JSON_FILES)
def test_annotations(name, tmp_path):
    task = tasks.get(name)
    home = tmp_path / task.folder
    home.mkdir(parents=True)
    good = EMBEDDED_DATA / task.folder
    for path in good.rglob("*"):
        if path.is_file():
            link = home / path.relative_to(good)
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(path)
    split = task.split(tmp_path)
    answers = [
        {"question_id": e.question_id, "prompt": e.prompt, "text": "A", **e.fields}
        for e in task.examples(tmp_path, split)
    ]
    path = home / JSON_FILES[name]
    value = read_json(path)
    path.unlink()

    def run() -> None:
        task.examples(tmp_path, split)
        with task.in_official_form(tmp_path):
            task.samples(tmp_path, answers, split)
            task.score(tmp_path, answers, split)

    @settings(fuzz, max_examples=max(1, CASES // len(JSON_FILES)))
    @given(changed(value))
    def fuzzed(other):
        path.write_text(json.dumps(other))
        refused_or_done(run)

    fuzzed()


CONFIG_FIELDS = ("keep", "layer", "image_pivots", "text_pivots", "strategy", "pivot_order", "scope", "exact", "seed")


@fuzz
@given(
    st.dictionaries(st.sampled_from([*CONFIG_FIELDS, "reduction_ratio", "budget_kind"]), VALUES, max_size=4),
    objects("K", "max_num_trunction", "reduction_ratio", "pivot_image_token", "Sparse", "strategy", "scope", "seed"),
)
def test_configs(fields, mapping):
    refused_or_done(lambda: DartConfig(**fields), TypeError)
    refused_or_done(lambda: from_original(mapping), TypeError)


CHECKPOINT = read_json(EMBEDDED_MODEL / "config.json")


@settings(fuzz, max_examples=max(1, CASES // 4))
@given(changed(CHECKPOINT).map(lambda value: json.dumps(value).encode()) | damaged(json.dumps(CHECKPOINT).encode()))
def test_checkpoints(tmp_path, content):
    """A damaged config.json in a folder without weights: refused before anything large is made of it."""
    for name in TOKENIZER_FILES:
        if (EMBEDDED_MODEL / name).is_file() and not (tmp_path / name).exists():
            (tmp_path / name).symlink_to(EMBEDDED_MODEL / name)
    (tmp_path / "config.json").write_bytes(content)
    assert refused_or_done(lambda: load_pretrained_model(str(tmp_path), device="cpu")) is None


def encoded(kind: str, frames: int = 1) -> bytes:
    file = io.BytesIO()
    images = [Image.new("RGB", (9, 7), (k * 40, 9, 200)) for k in range(frames)]
    images[0].save(file, kind, **({"save_all": True, "append_images": images[1:]} if frames > 1 else {}))
    return file.getvalue()


def header(width: int, height: int) -> bytes:
    """A PNG that says it has so many pixels and holds none."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    size = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", size) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


IMAGES = st.one_of(
    *(damaged(encoded(kind)) for kind in ("PNG", "JPEG", "BMP", "WEBP", "TIFF")),
    damaged(encoded("GIF", 3)),
    st.builds(header, *[st.sampled_from([0, 1, 3, 200, 14_000, 2**24, 2**31 - 1])] * 2),
)


@fuzz
@given(IMAGES)
@example(header(3, 20_000))
@example(header(2**16, 2**16))
def test_images(tmp_path, content):
    path = tmp_path / "image.gif"
    path.write_bytes(content)
    refused_or_done(lambda: read_image(str(path)))
    refused_or_done(lambda: load_image(str(path)))
    refused_or_done(lambda: read_video(str(path), 2, None))
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    refused_or_done(lambda: read_sent(url, ImageLimits()), ApiError)


def encoder(folder: Path) -> Encoder:
    """Never gets to what needs the model: no row here has a picture that can be read."""
    return Encoder(tokenizer(), None, None, None, get_template("vicuna_v1"), 512, folder)


@functools.cache
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(EMBEDDED_MODEL)


TURN = objects("from", "value")
TRAINING = st.fixed_dictionaries({}, optional={"id": VALUES, "image": VALUES, "conversations": st.lists(TURN) | VALUES})


TALK = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "A"}]


@fuzz
@given(TRAINING | changed({"id": "1", "conversations": TALK}))
@example(7)
@example({"id": 1, "image": 3, "conversations": []})
@example({"image": ["a", None], "conversations": TALK})
def test_training_rows(tmp_path, row):
    path = tmp_path / "data.json"
    path.write_text(json.dumps([row]))
    data = refused_or_done(lambda: Conversations(str(path), encoder(tmp_path)))
    if data is not None:
        refused_or_done(lambda: data[0])


PART = objects("type", "text", "image_url") | st.builds(
    lambda url: {"type": "image_url", "image_url": {"url": url}}, st.text(max_size=20) | SCALARS
)
MESSAGE = objects("role", "content") | st.builds(
    lambda role, content: {"role": role, "content": content},
    st.sampled_from(["user", "system", "assistant"]) | VALUES,
    st.lists(PART, max_size=3) | VALUES,
)
REQUEST = st.builds(
    lambda more, messages: more | {"messages": messages},
    objects("model", "max_tokens", "temperature", "top_p", "seed", "stream", "stream_options", "dart", "n", "stop"),
    st.lists(MESSAGE, max_size=3) | VALUES,
)
SEEN = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
ASKED = {
    "messages": [{"role": "user", "content": [SEEN, {"type": "text", "text": "What?"}]}],
    "dart": {"keep": 8, "strategy": "dart"},
    "max_tokens": 8,
    "temperature": 0.5,
    "stop": [],
}
LIMITS = ChatLimits("m", DartConfig(), per_request=True)


@fuzz
@given((REQUEST | changed(ASKED)).map(lambda value: json.dumps(value).encode()) | damaged(json.dumps(ASKED).encode()))
@example(json.dumps(ASKED).replace("What?", "\\ud800").encode())
@example(b'{"messages": [{"role": [], "content": "?"}]}')
@example(b'{"dart": {"strategy": ["dart"]}, "messages": [{"role": "user", "content": "?"}]}')
def test_chat_requests(body):
    try:
        chat = read_chat(body, LIMITS)
    except ApiError as error:
        assert 400 <= error.status < 500
        return
    json.dumps(chat.messages, ensure_ascii=False).encode()
    for url in chat.urls:
        with contextlib.suppress(ApiError):
            read_sent(url, ImageLimits())
