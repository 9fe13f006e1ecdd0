"""Judging answers with a language model behind any OpenAI-compatible endpoint, cached and resumable.

Environment: OPENAI_BASE_URL (default https://api.openai.com/v1), OPENAI_API_KEY (not needed by a server of your own),
JUDGE_MODEL (default: the benchmark's official judge), JUDGE_TIMEOUT in seconds.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from dart.utils import UserError
from llava.eval.engine.answers import read_lines

OPENAI = "https://api.openai.com/v1"
TIMEOUT_SECONDS = 120.0
TRIES = 5
FIRST_PAUSE_SECONDS = 1.0  # doubles after every failed request
SHOWN = 80  # characters of a reply in an error message
PASSING_CODES = frozenset({408, 409, 425, 429, 500, 502, 503, 504})

Item = TypeVar("Item")
Verdict = TypeVar("Verdict")
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Judge:
    """An endpoint and a model."""

    url: str
    key: str
    model: str
    timeout: float = TIMEOUT_SECONDS

    @classmethod
    def from_environment(cls, model: str) -> Judge:
        """model: the one to ask when JUDGE_MODEL is not set. Raises UserError when nobody can be asked."""
        url = os.environ.get("OPENAI_BASE_URL", "").rstrip("/")
        key = os.environ.get("OPENAI_API_KEY", "")
        if not url and not key:
            raise UserError(
                "the judge is needed now: set OPENAI_API_KEY (or OPENAI_BASE_URL for a server of your own, JUDGE_MODEL "
                "for its model) and run the same command again; the answers are kept"
            )
        seconds = os.environ.get("JUDGE_TIMEOUT", "")
        try:
            timeout = float(seconds) if seconds else TIMEOUT_SECONDS
        except ValueError as error:
            raise UserError(f"JUDGE_TIMEOUT must be a number of seconds, got {seconds!r}") from error
        if not (url or OPENAI).startswith(("http://", "https://")):
            raise UserError(f"OPENAI_BASE_URL must start with http:// or https://, got {url!r}")
        return cls(url or OPENAI, key, os.environ.get("JUDGE_MODEL") or model, timeout)

    def ask(self, messages: Messages, temperature: float, max_tokens: int) -> str:
        """The reply's text. Requests that fail for a passing reason are repeated; raises UserError after the last."""
        body = {"model": self.model, "messages": messages, "temperature": temperature, "max_tokens": max_tokens}
        problem = ""
        for attempt in range(TRIES):
            if attempt:
                time.sleep(FIRST_PAUSE_SECONDS * 2 ** (attempt - 1))
            try:
                return self._request(body)
            except urllib.error.HTTPError as error:
                problem = f"HTTP {error.code}: {error.read(SHOWN * 4).decode(errors='replace')[:SHOWN]}"
                if error.code not in PASSING_CODES:
                    break
            except TimeoutError:
                problem = f"no answer within {self.timeout:g} s"
            except (KeyError, IndexError, TypeError, ValueError):
                problem = "its reply is no chat completion"
            except (urllib.error.URLError, OSError) as error:
                problem = str(getattr(error, "reason", error))
        raise UserError(
            f"judge {self.model} at {self.url} failed ({problem}); judgements so far are kept: check OPENAI_BASE_URL, "
            "OPENAI_API_KEY and JUDGE_MODEL and run the same command again"
        )

    def _request(self, body: dict[str, Any]) -> str:
        headers = {"Content-Type": "application/json"}
        if self.key:
            headers["Authorization"] = f"Bearer {self.key}"
        request = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=self.timeout) as response:
            text = json.load(response)["choices"][0]["message"]["content"]
        if not isinstance(text, str):
            raise TypeError(f"content must be text, got {type(text).__name__}")
        return text


def verdict_of(name: str, ask: Callable[[int], str], parse: Callable[[str], Verdict | None]) -> tuple[str, Verdict]:
    """(reply, verdict) of the first reply that `parse` understands (it returns None for the others).

    ask: attempt number from 0 -> reply. Raises UserError naming the question `name` when no reply is understood.
    """
    reply = ""
    for attempt in range(TRIES):
        reply = ask(attempt)
        verdict = parse(reply)
        if verdict is not None:
            return reply, verdict
    raise UserError(
        f"the judge gave no score for question {name} in {TRIES} replies, the last one {reply[:SHOWN]!r}; judgements "
        "so far are kept: choose another JUDGE_MODEL or run the same command again"
    )


class Judgements:
    """An append-only file of judgements (JSON lines), by what was judged. Safe against a kill at any moment.

    Raises UserError when another process writes the file or a line is broken.
    """

    def __init__(self, path: Path):
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("a+b")
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UserError(f"{path} is being written by another process; wait for it") from error
        self._file.seek(0)
        data = self._file.read()
        if data and not data.endswith(b"\n"):
            self._file.truncate(data.rfind(b"\n") + 1)
        self._rows = {row["judged"]: row for row in read_lines(path) if "judged" in row}

    def get(self, judged: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row of `judged` (see `fingerprint`), else that which `make` returns, written at once."""
        if judged not in self._rows:
            row = make() | {"judged": judged}
            self._file.write((json.dumps(row, ensure_ascii=False) + "\n").encode())
            self._file.flush()
            self._rows[judged] = row
        return self._rows[judged]

    def __enter__(self) -> Judgements:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


def judging(items: Iterable[Item]) -> Iterable[Item]:
    """The items, with a progress bar."""
    return tqdm(items, desc="judged", file=sys.stderr, mininterval=2)


def fingerprint(judge: Judge, question_id: Any, content: str) -> str:
    """Changes with the judge's model, the question and all that the judge is shown."""
    return hashlib.sha256(repr((judge.model, str(question_id), content)).encode()).hexdigest()[:22]
