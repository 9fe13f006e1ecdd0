"""`python -m dart serve` on the embedded model under load: 1, 8 and 32 clients; nothing lost, every answer that of one.

`LOAD_REQUESTS=500 make test-serve` asks more.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("fastapi")
pytest.importorskip("openai")

from benchmarks.serving import main  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
NAME = "qwen2_5-vl-tiny"
CLIENTS = (1, 8, 32)
REQUESTS = int(os.environ.get("LOAD_REQUESTS", "32"))  # for each number of clients
START, PAUSE = 120, 0.3  # seconds


@pytest.fixture
def url() -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "dart", "serve", "--model", str(ROOT / "playground" / "models" / NAME)]
    command += ["--keep", "0.222", "--per-request", "--port", port, "--queue", str(max(CLIENTS))]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        try:
            end = time.monotonic() + START
            while not alive(port):
                assert server.poll() is None and time.monotonic() < end, "the server does not answer"
                time.sleep(PAUSE)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            server.terminate()


def alive(port: str) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=PAUSE):
            return True
    except OSError:
        return False


def test_nothing_is_lost_and_nothing_is_wrong(url: str, tmp_path: Path) -> None:
    settings = json.dumps({"64": {"keep": 64}})
    out = tmp_path / "rows.json"
    counts = ",".join(map(str, CLIENTS))
    main(["--url", url, "--served", NAME, "--settings", settings, "--clients", counts, "--requests", str(REQUESTS),
          "--tokens", "3", "--out", str(out)])  # fmt: skip
    rows = json.loads(out.read_text())["rows"]
    assert [row["clients"] for row in rows] == list(CLIENTS)
    assert all((row["requests"], row["lost"], row["wrong"]) == (REQUESTS, 0, 0) for row in rows)
