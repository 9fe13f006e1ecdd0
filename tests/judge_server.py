"""A stand-in for an OpenAI-compatible endpoint on this machine, with replies that a test scripts."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

# number of the request from 0, its body -> the reply's text, an HTTP code, raw bytes, or seconds (float) to be silent
Script = Callable[[int, dict[str, Any]], str | int | bytes | float]


class StandIn:
    """`requests`: the bodies so far; `keys`: their Authorization headers; `paths`: where they went."""

    def __init__(self, script: Script, headers: dict[str, str], error: bytes):
        self.script, self.url, self.headers, self.error = script, "", headers, error
        self.requests: list[dict[str, Any]] = []
        self.keys: list[str | None] = []
        self.paths: list[str] = []

    def handle(self, handler: BaseHTTPRequestHandler) -> None:
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        self.requests.append(body)
        self.keys.append(handler.headers["Authorization"])
        self.paths.append(handler.path)
        reply = self.script(len(self.requests) - 1, body)
        if isinstance(reply, float):
            time.sleep(reply)
            reply = "too late"
        code = reply if isinstance(reply, int) else 200
        if isinstance(reply, str):
            reply = json.dumps({"choices": [{"message": {"role": "assistant", "content": reply}}]}).encode()
        data = reply if isinstance(reply, bytes) else self.error
        handler.send_response(code)
        for name, value in {"Content-Type": "application/json", "Retry-After-Ms": "1", **self.headers}.items():
            handler.send_header(name, value)
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data)


@contextmanager
def stand_in(
    script: Script, headers: dict[str, str] | None = None, error: bytes = b'{"error": "scripted"}'
) -> Iterator[StandIn]:
    """A server on a free port for the time of the `with` block. headers: of every reply; error: sent with a code."""
    server = StandIn(script, headers or {}, error)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            server.handle(self)

        def log_message(self, *_: object) -> None:
            """Tests read stderr."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads = True
    http.handle_error = lambda *_: None  # a client that gave up waiting is what some tests are about
    thread = threading.Thread(target=http.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{http.server_address[1]}/v1"
    try:
        yield server
    finally:
        http.shutdown()
        http.server_close()


@contextmanager
def drip(pause: float, times: int) -> Iterator[str]:
    """The address of a server whose reply is a space every `pause` seconds, `times` times."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", str(times))
            self.end_headers()
            for _ in range(times):
                self.wfile.write(b" ")
                time.sleep(pause)

        def log_message(self, *_: object) -> None:
            """Tests read stderr."""

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    http.daemon_threads, http.block_on_close = True, False
    http.handle_error = lambda *_: None
    threading.Thread(target=http.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{http.server_address[1]}/v1"
    finally:
        http.shutdown()
        http.server_close()
