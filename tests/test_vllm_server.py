"""vLLM's OpenAI server with the plugin, as scripts/serve/vllm.sh starts it: many clients, faults. `make test-vllm`."""

from __future__ import annotations

import base64
import io
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

openai = pytest.importorskip("openai")
pytest.importorskip("vllm.entrypoints", reason="vLLM has an environment of its own: make test-vllm")

ROOT = Path(__file__).resolve().parents[1]
IMAGES = ROOT / "playground" / "data" / "mini" / "textvqa" / "train_images"
NAME = "qwen2_5-vl-tiny"
START, PAUSE = 240, 0.5  # seconds: for the server to answer, and between two looks at it
CLIENTS, ROUNDS = 8, 3
LONG = 1000  # tokens of an answer that nobody waits for
QUESTIONS = ("What number is on the blue sign?", "What color is the sign?")
BUDGETS: list[Any] = [
    None,
    {"keep": 64},
    {"keep": 0.3, "strategy": "spread"},
    {"keep": 0.1, "strategy": "divprune"},
    {"keep": 30, "strategy": "random", "seed": 7},
    False,
]


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    said = tmp_path_factory.mktemp("server") / "log.txt"
    # Without the settings of the engines in this process (tests/vllm_beside.py).
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")}
    environment |= {"PYTHON": sys.executable, "PER_REQUEST": "1", "KEEP": "0.222", "PORT": str(port)}
    command = ["bash", str(ROOT / "scripts" / "serve" / "vllm.sh"), "--max-model-len", "2048", "--max-num-seqs", "8"]
    with said.open("w") as log, subprocess.Popen(command, env=environment, stdout=log, stderr=log) as server:
        client = openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="none", max_retries=0, timeout=120)
        try:
            end = time.monotonic() + START
            while not alive(client):
                if server.poll() is not None or time.monotonic() > end:
                    pytest.fail(f"the server does not answer:\n{said.read_text()[-3000:]}")
                time.sleep(PAUSE)
            yield client
        finally:
            server.terminate()


def alive(client: Any) -> bool:
    try:
        return client.models.list().data[0].id == NAME
    except openai.APIConnectionError:
        return False


def url(number: int) -> str:
    return "data:image/jpeg;base64," + base64.b64encode((IMAGES / f"scene_{number:04d}.jpg").read_bytes()).decode()


def body(question: str = QUESTIONS[0], *images: str, dart: Any = None, **more: Any) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{"type": "image_url", "image_url": {"url": each}} for each in images]
    content = [*parts, {"type": "text", "text": question}]
    extra = {} if dart is None else {"mm_processor_kwargs": {"dart": dart}}
    extra |= more.pop("extra_body", {})
    request = {"model": NAME, "messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": 8}
    return request | {"extra_body": extra} | more


def ask(client: Any, request: dict[str, Any]) -> tuple[str, int]:
    """The answer and the tokens of the prompt, of a stream's parts too."""
    if not request.get("stream"):
        whole = client.chat.completions.create(**request)
        return whole.choices[0].message.content, whole.usage.prompt_tokens
    parts = list(client.chat.completions.create(**request, stream_options={"include_usage": True}))
    said = [part.choices[0].delta.content or "" for part in parts if part.choices]
    return "".join(said), parts[-1].usage.prompt_tokens


def test_eight_clients_get_what_each_gets_alone(client: Any) -> None:
    """Images, questions and budgets that return: caches are hit by what is the same, and by nothing else."""
    requests = [
        body(QUESTIONS[number % 2], url(1 + number // 4), dart=budget, stream=number % 3 == 0)
        for number, budget in enumerate(BUDGETS * 2)
    ]
    alone = [ask(client, request) for request in requests]
    assert len({length for _, length in alone}) > 3 and len({text for text, _ in alone}) > 2
    with ThreadPoolExecutor(CLIENTS) as pool:
        together = list(pool.map(lambda request: ask(client, request), requests * ROUNDS))
    assert together == alone * ROUNDS


def test_vllms_own_client_loses_nothing(client: Any) -> None:
    url = str(client.base_url).removesuffix("/v1/")
    words = ["--url", url, "--requests", "8", "--clients", "4"]
    run = subprocess.run(
        [sys.executable, "-m", "benchmarks.serving_vllm", *words], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    rows = json.loads(run.stdout.splitlines()[-1])["rows"]
    assert [(row["setting"], row["requests"], row["lost"]) for row in rows] == [("unpruned", 8, 0), ("0.222", 8, 0)]


def test_the_servers_budget_is_that_of_a_request_without_one(client: Any) -> None:
    lengths = [ask(client, body(QUESTIONS[0], url(5), dart=asked))[1] for asked in (None, {"keep": 0.222}, False)]
    assert lengths[0] == lengths[1] < lengths[2] / 2


def test_a_stream_says_what_a_whole_answer_says(client: Any) -> None:
    request = body(QUESTIONS[0], url(6), dart={"keep": 0.4}, max_tokens=24)
    assert ask(client, request | {"stream": True}) == ask(client, request)


def test_a_client_that_goes_away_in_the_middle(client: Any) -> None:
    request = body(QUESTIONS[1], url(7), dart={"keep": 0.4})
    before, written = ask(client, request), metric(client, "generation_tokens_total")
    for _ in range(CLIENTS):
        stream = client.chat.completions.create(
            **request | {"stream": True, "max_tokens": LONG, "extra_body": {"ignore_eos": True}}
        )
        next(iter(stream))
        stream.close()
    assert ask(client, request) == before
    deadline = time.monotonic() + 20
    while metric(client, "num_requests_running"):
        assert time.monotonic() < deadline, "an answer that nobody reads goes on"
        time.sleep(PAUSE)
    assert metric(client, "generation_tokens_total") - written < CLIENTS * LONG / 2


def metric(client: Any, name: str) -> float:
    """Of the server's /metrics."""
    text = client.get(str(client.base_url).removesuffix("v1/") + "metrics", cast_to=str)
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"vllm:{name}"))


def half_a_picture() -> str:
    return "data:image/jpeg;base64," + base64.b64encode((IMAGES / "scene_0001.jpg").read_bytes()[:800]).decode()


def a_line() -> str:
    file = io.BytesIO()
    Image.new("RGB", (3000, 2)).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (body("?", url(1), dart={"keep": 1.5}), "between 0 and 1"),
        (body("?", url(1), dart={"keep": -3}), "0 or more"),
        (body("?", url(1), dart={"keep": 9, "strategy": "fastv"}), "strategy must be one of"),
        (body("?", url(1), dart={"keep": 9, "strategy": "nothing"}), "strategy must be one of"),
        (body("?", url(1), dart={"rate": 9}), "has no field rate"),
        (body("?", url(1), dart="all"), "must be an object"),
        (body("?", half_a_picture()), "image"),
        (body("?", "data:image/png;base64,AAAA"), "image"),
        (body("?", "no address"), ""),
        (body("?", a_line()), "Failed to apply"),
        (body("?", url(1), max_tokens=10**6), "max_tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_bad_request_is_a_400_and_the_server_lives(client: Any, request_: dict[str, Any], words: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client, request_)
    error = caught.value.body
    assert words in error["message"] and error["type"] == "BadRequestError" and error["code"] == 400
    assert "\n" not in error["message"] and "Traceback" not in error["message"]
    assert ask(client, body(QUESTIONS[0], url(1), dart={"keep": 0.2}))[0]


def test_several_answers_of_one_request(client: Any) -> None:
    request = body(QUESTIONS[0], url(1), dart={"keep": 0.3})
    whole = client.chat.completions.create(**request | {"n": 3, "temperature": 1.0, "seed": 1})
    assert [choice.index for choice in whole.choices] == [0, 1, 2]
    assert whole.usage.prompt_tokens == ask(client, request)[1]


COLOURS = ("red", "blue")
FORMS = [
    ({"choice": COLOURS}, COLOURS),
    ({"json": {"type": "string", "enum": COLOURS}}, ('"red"', '"blue"')),
]


@pytest.mark.parametrize(("form", "allowed"), FORMS, ids=["choice", "json"])
def test_a_form_of_the_answer(client: Any, form: dict[str, Any], allowed: tuple[str, ...]) -> None:
    request = body(QUESTIONS[1], url(1), dart={"keep": 0.3}, max_tokens=40, extra_body={"structured_outputs": form})
    assert ask(client, request)[0].strip() in allowed
