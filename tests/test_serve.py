"""`python -m dart serve`: answers, refusals, clients that leave, and the end of the server."""

from __future__ import annotations

import base64
import io
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
import tiny_checkpoints
from PIL import Image

import dart
from dart.cli import main
from dart.cli.loading import load
from dart.serve.errors import ApiError
from dart.serve.images import ImageLimits, read_image

pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx")
from fastapi.testclient import TestClient  # noqa: E402

from dart.serve.app import Limits, build_app  # noqa: E402
from dart.serve.chat import ChatLimits  # noqa: E402
from dart.serve.engine import Engine  # noqa: E402
from dart.serve.metrics import Metrics  # noqa: E402

CONFIG = dart.DartConfig(keep=6, exact=True)
KEY = "a-key"
HEADERS = {"Authorization": f"Bearer {KEY}"}
PATH = "/v1/chat/completions"
LONG = 3000  # tokens: an answer of seconds
PIXELS, BYTES = 40_000, 100_000


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "qwen3-vl"
    tiny_checkpoints.qwen3_vl(folder)
    return load(str(folder), "cpu", None, None)


def built(loaded, waiting=16, seconds=60.0, **chat):
    engine = Engine(loaded, CONFIG, waiting, Metrics())
    limits = ChatLimits("tiny", CONFIG, **({"max_tokens": LONG, "per_request": True} | chat))
    images = ImageLimits(frozenset({"*"}), PIXELS)
    return engine, build_app(engine, Limits(limits, images, BYTES, seconds), KEY)


@pytest.fixture(scope="module")
def client(loaded):
    _, app = built(loaded)
    with TestClient(app, headers=HEADERS) as client:
        yield client


def picture(number=0, size=(112, 84)):
    image = Image.radial_gradient("L").resize(size).convert("RGB")
    return image.rotate(40 * number)


def url_of(image):
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def body(number=0, url=None, **more):
    parts = [
        {"type": "image_url", "image_url": {"url": url or url_of(picture(number))}},
        {"type": "text", "text": f"What is picture {number}?"},
    ]
    return {"messages": [{"role": "user", "content": parts}], "max_tokens": 8, **more}


def wanted(loaded, number=0, config=CONFIG, tokens=8):
    """The text that `generate` alone gives."""
    said = [{"type": "image"}, {"type": "text", "text": f"What is picture {number}?"}]
    text = loaded.processor.apply_chat_template([{"role": "user", "content": said}], add_generation_prompt=True)
    inputs = loaded.processor(text=[text], images=[picture(number)], return_tensors="pt")
    with dart.prune(loaded.model, config):
        ids = loaded.model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return loaded.tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)


def chunks(lines):
    data = [line.removeprefix("data: ") for line in lines if line]
    assert data.pop() == "[DONE]"
    return [json.loads(each) for each in data]


def refused(answer, status, words):
    """The answer has that status, and an error body whose sentence has these words."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    assert words in error["message"] and "\n" not in error["message"]


def test_answers_are_those_of_generate(loaded, client):
    answers = [wanted(loaded, number) for number in range(2)]
    assert answers[0] != answers[1] and all(answers)
    for number, text in enumerate(answers):
        got = client.post(PATH, json=body(number)).json()
        assert got["choices"][0]["message"]["content"] == text
        assert got["choices"][0]["finish_reason"] == "length"
        assert got["usage"]["completion_tokens"] == 8
        assert got["usage"]["visual_tokens"] == {"before": 12, "after": 6}


def test_a_stream_joins_to_the_same_text(loaded, client):
    asked = body(3, stream=True, stream_options={"include_usage": True}, max_completion_tokens=40)
    with client.stream("POST", PATH, json=asked) as answer:
        got = chunks(answer.iter_lines())
    assert "".join(c["choices"][0]["delta"].get("content", "") for c in got[:-1]) == wanted(loaded, 3, tokens=40)
    assert len(got) > 10 and got[-2]["choices"][0]["finish_reason"] == "length"
    assert got[-1]["choices"] == [] and got[-1]["usage"]["visual_tokens"] == {"before": 12, "after": 6}


def test_eight_clients_get_their_own_answers(loaded, client):
    answers = [wanted(loaded, number) for number in range(8)]
    assert len(set(answers)) > 4

    def ask(number):
        return client.post(PATH, json=body(number)).json()["choices"][0]["message"]["content"]

    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(ask, [*range(8)] * 2)) == answers * 2


def test_a_request_sets_its_budget(loaded, client):
    uniform = dart.DartConfig(keep=3, exact=True, strategy="uniform")
    got = client.post(PATH, json=body(dart={"keep": 3, "strategy": "uniform"})).json()
    assert got["choices"][0]["message"]["content"] == wanted(loaded, config=uniform)
    assert got["usage"]["visual_tokens"] == {"before": 12, "after": 3}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"dart": {"keep": 1.5}}, "keep as a fraction"),
        ({"dart": {"keep": -1}}, "0 or more"),
        ({"dart": {"keep": "many"}}, "keep must be"),
        ({"dart": {"strategy": "drat"}}, "did you mean dart?"),
        ({"dart": {"layers": 3}}, "fields of keep"),
        ({"max_tokens": 0}, "max_tokens is not"),
        ({"max_tokens": LONG + 1}, "max_tokens is not"),
        ({"n": 2}, "n is supported only as 1"),
        ({"tool_choice": "auto"}, "'tool_choice' is not supported"),
        ({"temperature": "hot"}, "temperature is not"),
        ({"messages": []}, "at least one message"),
        ({"messages": [{"role": "user", "content": "What?"}]}, "have 0 images"),
        ({"messages": [{"role": "user", "content": [3]}]}, "a part is neither"),
    ],
)
def test_a_wrong_field_is_refused(client, more, words):
    refused(client.post(PATH, json=body() | more), 400, words)


@pytest.mark.parametrize(
    ("url", "status", "words"),
    [
        ("data:image/png;base64,AAAA", 400, "cannot be read"),
        ("data:image/png;base64,?", 400, "not valid base64"),
        ("data:image/png,AAAA", 400, "not of the form"),
        ("file:///etc/hostname", 400, "neither a base64 data URL nor"),
        ("http://127.0.0.1/a.png", 400, "private address"),
        ("http://[::ffff:10.0.0.1]/a.png", 400, "private address"),
        ("http://169.254.169.254/latest", 400, "private address"),
        (url_of(picture(size=(300, 200))), 413, "300 x 200 pixels"),
        ("data:image/png;base64," + "A" * BYTES, 413, "more than 100000 bytes"),
    ],
)
def test_a_wrong_image_is_refused(client, url, status, words):
    refused(client.post(PATH, json=body(url=url)), status, words)


def test_other_refusals(loaded, client):
    refused(client.post(PATH, json=body(), headers={"Authorization": "Bearer other"}), 401, "API key")
    refused(client.get("/v1/models", headers={"Authorization": ""}), 401, "API key")
    refused(client.post(PATH, content=b"{"), 400, "not valid JSON")
    refused(client.post(PATH, json=body(model="other")), 404, "'tiny'")
    refused(client.get("/v1/other"), 404, "/v1/other")
    with TestClient(built(loaded, per_request=False)[1], headers=HEADERS) as closed:
        refused(closed.post(PATH, json=body(dart={"keep": 3})), 400, "without --per-request")
    with TestClient(built(loaded, seconds=0.3)[1], headers=HEADERS) as hasty:
        refused(hasty.post(PATH, json=body(max_tokens=LONG)), 504, "time limit")


@contextmanager
def site():
    """A host with a picture, and one path that leads elsewhere."""

    class Site(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200 if self.path == "/a.png?b" else 302)
            self.send_header("Location", "http://127.0.0.1:9/")
            self.end_headers()
            picture().save(self.wfile, "PNG")

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Site)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_images_by_url():
    named = ImageLimits(frozenset({"127.0.0.1"}))
    with site() as host:
        assert read_image(f"{host}/a.png?b", named).tobytes() == picture().tobytes()
        for url, limits, words in (
            (f"{host}/moved", named, "redirects are not followed"),
            (f"{host}/a.png?b", ImageLimits(named.hosts, bytes=50), "more than 50 bytes"),
            (f"{host}/a.png?b", ImageLimits(), "no images from that host"),
            (f"{host}/a.png?b", ImageLimits(frozenset({"*"})), "private address"),
            ("http://127.0.0.1:9/", named, "cannot be fetched"),
        ):
            with pytest.raises(ApiError, match=words):
                read_image(url, limits)


@contextmanager
def serving(app):
    """(server, thread, address) of a real server."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    yield server, thread, f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(20)


def until(true, seconds=10):
    ends = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < ends
        time.sleep(0.02)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_stops_its_generation(loaded, stream):
    engine, app = built(loaded, waiting=0)
    with serving(app) as (_, _, address), httpx.Client(headers=HEADERS, timeout=30) as client:
        asked = body(max_tokens=LONG, stream=stream)
        if stream:
            with client.stream("POST", address + PATH, json=asked) as answer:
                lines = answer.iter_lines()  # kept: an iterator that is dropped closes the connection
                next(lines)
                refused(client.post(address + PATH, json=body()), 429, "try again later")
        else:
            with pytest.raises(httpx.ReadTimeout):
                client.post(address + PATH, json=asked, timeout=0.5)
        until(lambda: engine.inside == 0, 3)
        assert 0 < engine.metrics.tokens["dart_completion_tokens_total"] < LONG
        assert client.post(address + PATH, json=body()).status_code == 200


def test_shutdown_waits_for_the_answer(loaded):
    engine, app = built(loaded)
    with serving(app) as (server, thread, address), ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, address + PATH, json=body(max_tokens=100), headers=HEADERS, timeout=30)
        until(lambda: engine.inside == 1)
        server.should_exit = True
        assert answer.result().json()["usage"]["completion_tokens"] == 100
        thread.join(20)
        assert not thread.is_alive()
        with pytest.raises(httpx.ConnectError):
            httpx.get(address + "/health")


def test_health_models_and_metrics(loaded):
    with TestClient(built(loaded)[1], headers=HEADERS) as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert [each["id"] for each in client.get("/v1/models").json()["data"]] == ["tiny"]
        client.post(PATH, json=body())
        client.post(PATH, json=body(n=2))
        lines = client.get("/metrics").text.splitlines()
    rows = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    assert rows['dart_requests_total{status="200"}'] == rows['dart_requests_total{status="400"}'] == "1"
    assert rows["dart_errors_total"] == "1" and rows["dart_requests_inside"] == "0"
    assert rows["dart_visual_tokens_before_total"] == "12" and rows["dart_visual_tokens_after_total"] == "6"
    assert rows["dart_completion_tokens_total"] == "8" and rows["dart_prefill_seconds_count"] == "1"
    assert rows['dart_request_seconds_bucket{le="+Inf"}'] == rows["dart_request_seconds_count"] == "2"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "--model"),
        (["--model", "./none"], "does not exist"),
        (["--model", "./none", "--api-key-env", "DART_NO_SUCH_KEY"], "DART_NO_SUCH_KEY"),
        (["--model", "./none", "--strategy", "drat"], "did you mean dart?"),
        (["--model", "./none", "--keep", "1.5"], "expected tokens"),
        (["--model", "./none", "--port", "70000"], "from 1 to 65535, got '70000'"),
        (["--model", "./none", "--host", "192.0.2.1"], "cannot serve at 192.0.2.1"),
    ],
)
def test_the_command_refuses_in_one_line(capsys, arguments, words):
    with pytest.raises(SystemExit) as ended:
        main(["serve", *arguments])
    line = capsys.readouterr().err
    assert ended.value.code == 2 and line.startswith("error: ") and line.count("\n") == 1 and words in line
