"""`benchmarks.serving` against a server that answers, mixes answers up, or drops them."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from benchmarks.serving import main
from dev.results import speed

pytest.importorskip("openai")
REQUESTS, DIFFERENT = 12, 6


@contextmanager
def server(after_alone: str) -> Iterator[str]:
    """An OpenAI server whose answers are a hash of the request; after_alone: what it does with every third request once
    each was asked alone."""
    seen: list[int] = []
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                seen.append(1)
                fault = len(seen) > 2 * DIFFERENT and len(seen) % 3 == 0
            if fault and after_alone == "drop":
                self.send_error(503)
                return
            text = hashlib.sha256(json.dumps(body["messages"]).encode()).hexdigest()
            words = ["another's" if fault and after_alone == "mix" else text[:4], text[4:8]]
            parts = [{"index": 0, "delta": {"content": word}, "finish_reason": None} for word in words]
            usage = {"prompt_tokens": 9 if body["dart"] else 99, "completion_tokens": 2, "total_tokens": 11}
            common = {"id": "x", "object": "chat.completion.chunk", "created": 0, "model": "m"}
            chunks = [{**common, "choices": [part]} for part in parts] + [{**common, "choices": [], "usage": usage}]
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            for chunk in chunks:
                self.wfile.write(f"data: {json.dumps(chunk)}\n\n".encode())
            self.wfile.write(b"data: [DONE]\n\n")

        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            if after_alone == "tell":
                self.wfile.write(b'# TYPE vllm:kv_cache_usage_perc gauge\nvllm:kv_cache_usage_perc{engine="0"} 0.25\n')

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}/v1"
    finally:
        httpd.shutdown()
        httpd.server_close()


def rows(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch, after_alone: str, *more: str) -> list[dict]:
    monkeypatch.setattr("benchmarks.serving.DIFFERENT", DIFFERENT)
    with server(after_alone) as url:
        words = ["--url", url, "--served", "m", "--clients", "1,4", "--requests", str(REQUESTS)]
        main([*words, "--settings", '{"unpruned": false, "64": {"keep": 64}}', *more])
    return json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]


def test_every_answer_is_that_of_the_request_alone(capsys, monkeypatch):
    found = rows(capsys, monkeypatch, "answer")
    assert [(row["setting"], row["clients"]) for row in found] == [(s, c) for c in (1, 4) for s in ("unpruned", "64")]
    assert all(row["lost"] == row["wrong"] == 0 and row["requests"] == REQUESTS for row in found)
    assert [row["prompt_tokens"] for row in found] == [99, 9, 99, 9]
    assert all(0 < row["first_median_s"] <= row["total_median_s"] for row in found)


@pytest.mark.parametrize(("fault", "counted", "other"), [("mix", "wrong", "lost"), ("drop", "lost", "wrong")])
def test_what_is_wrong_or_lost_is_counted(capsys, monkeypatch, fault, counted, other):
    found = rows(capsys, monkeypatch, fault)
    assert all(row[counted] == REQUESTS // 3 and row[other] == 0 for row in found)


def test_the_cache_is_looked_at_where_the_server_tells(capsys, monkeypatch):
    assert {row["cache_peak"] for row in rows(capsys, monkeypatch, "tell")} == {0.25}
    assert not any("cache_peak" in row for row in rows(capsys, monkeypatch, "answer"))


def test_a_recorded_run_becomes_a_table_and_a_chart(tmp_path, capsys, monkeypatch):
    out, plot = tmp_path / "serving-cpu.json", tmp_path / "serving-cpu.png"
    rows(capsys, monkeypatch, "answer", "--out", str(out), "--plot", str(plot))
    text = "".join(f"<!-- results:{part} -->\n<!-- /results:{part} -->\n" for part in speed.PAGES["serving.md"])
    page = speed.page_with_results("serving.md", text, tmp_path)
    assert "| 4 | unpruned | 12 | 0 | 0 | 99 |" in page and "| 1.00 |" in page and "serving-cpu.png" in page
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_no_server_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--url", "http://127.0.0.1:9/v1", "--served", "m", "--requests", "1"])
    assert ended.value.code == 2
    assert "127.0.0.1:9" in capsys.readouterr().err


def test_bad_settings_are_refused(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--served", "m", "--settings", "64"])
    assert ended.value.code == 2 and "expected JSON" in capsys.readouterr().err
