"""Judging answers with a language model behind any OpenAI-compatible endpoint, cached and resumable.

Environment: OPENAI_BASE_URL (default https://api.openai.com/v1), OPENAI_API_KEY (not needed by a server of your own),
JUDGE_MODEL (default: the benchmark's official judge), JUDGE_TIMEOUT in seconds. Needs the extra `eval`.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tqdm import tqdm

from dart.utils import UserError, needed
from llava.eval.engine.answers import JsonLines, read_lines

OPENAI = "https://api.openai.com/v1"
TIMEOUT_SECONDS = 120.0
LONGEST_TIMEOUT_SECONDS = 3600
TRIES = 5
LONGEST_REPLY = 4 << 20  # bytes
OF_THE_STREAM = ("content-encoding", "content-length", "transfer-encoding")  # headers that no longer hold once read
SHOWN = 120  # characters of a reply in an error message
NO_KEY = "none"  # openai's client wants one; it is not sent
NO_COMPLETION = "its reply is no chat completion"

Item = TypeVar("Item")
Verdict = TypeVar("Verdict")
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Judge:
    """An endpoint and a model; `key` is shown to nobody but the endpoint."""

    url: str
    key: str = field(repr=False)
    model: str
    timeout: float = TIMEOUT_SECONDS

    @classmethod
    def from_environment(cls, model: str) -> Judge:
        """model: the one to ask when JUDGE_MODEL is not set. Raises UserError when nobody can be asked."""
        url = os.environ.get("OPENAI_BASE_URL", "").rstrip("/")
        key = os.environ.get("OPENAI_API_KEY", "").strip()
        if not url and not key:
            raise UserError(
                "the judge is needed now: set OPENAI_API_KEY (or OPENAI_BASE_URL for a server of your own, JUDGE_MODEL "
                "for its model) and run the same command again; the answers are kept"
            )
        if not (key.isascii() and key.isprintable()):
            raise UserError("OPENAI_API_KEY has characters that no key has, such as a line break: set it again")
        _check_url(url or OPENAI)
        return cls(url or OPENAI, key, os.environ.get("JUDGE_MODEL") or model, _timeout())

    @functools.cached_property
    def _client(self) -> Any:
        """Repeats requests that fail for a passing reason; follows no redirect, which could carry the key elsewhere."""
        openai, httpx, seconds = needed("openai", "eval"), needed("httpx", "eval"), self.timeout

        class Bounded(openai.DefaultHttpxClient):
            """Reads no reply that is longer or takes longer than allowed."""

            def send(self, request: Any, **options: Any) -> Any:
                began = time.monotonic()
                response, data = super().send(request, **options | {"stream": True}), b""
                with contextlib.closing(response):
                    for part in response.iter_bytes():
                        data += part
                        if len(data) > LONGEST_REPLY:
                            raise httpx.ReadError(f"its reply is longer than {LONGEST_REPLY >> 20} MiB")
                        if time.monotonic() - began > seconds:
                            raise httpx.ReadTimeout("the whole reply took too long", request=request)
                headers = [(n, v) for n, v in response.headers.items() if n not in OF_THE_STREAM]
                return httpx.Response(response.status_code, headers=headers, content=data, request=request)

        return openai.OpenAI(
            base_url=self.url,
            api_key=self.key or NO_KEY,
            timeout=self.timeout,
            max_retries=TRIES - 1,
            http_client=Bounded(follow_redirects=False),
        )

    def ask(self, messages: Messages, temperature: float, max_tokens: int) -> str:
        """The reply's text. Raises UserError when the judge cannot be asked, after the last of several tries."""
        openai = needed("openai", "eval")
        try:
            reply = self._client.chat.completions.create(
                model=self.model,
                messages=messages,
                temperature=temperature,
                max_tokens=max_tokens,
                extra_headers={} if self.key else {"Authorization": openai.Omit()},
            )
            text = reply.choices[0].message.content
            if isinstance(text, str):
                return text
            problem = NO_COMPLETION
        except openai.APIStatusError as error:
            problem = f"HTTP {error.status_code}: {error.response.text}"
        except openai.APITimeoutError:
            problem = f"no answer within {self.timeout:g} s"
        except openai.APIConnectionError as error:
            problem = str(error.__cause__ or error)
        except (openai.OpenAIError, AttributeError, IndexError, TypeError, ValueError, RecursionError):
            problem = NO_COMPLETION
        if self.key:
            problem = problem.replace(self.key, "(the key)")
        raise UserError(
            f"judge {self.model} at {self.url} failed ({problem[:SHOWN]}); judgements so far are kept: check "
            "OPENAI_BASE_URL, OPENAI_API_KEY and JUDGE_MODEL and run the same command again"
        )


def _check_url(url: str) -> None:
    try:
        parts = urlsplit(url)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        good = good and url.isprintable() and " " not in url
    except ValueError:  # a port or a bracket that is none
        good = False
    if not good:
        raise UserError(f"OPENAI_BASE_URL must start with http:// or https:// and name a host, got {url!r}")


def _timeout() -> float:
    words = os.environ.get("JUDGE_TIMEOUT", "")
    try:
        seconds = float(words) if words else TIMEOUT_SECONDS
    except ValueError:
        seconds = 0.0
    if not 0 < seconds <= LONGEST_TIMEOUT_SECONDS:
        raise UserError(
            f"JUDGE_TIMEOUT must be a number of seconds above 0 and at most {LONGEST_TIMEOUT_SECONDS}, got {words!r}"
        )
    return seconds


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


class Judgements(JsonLines):
    """Judgements, by what was judged."""

    def __init__(self, path: Path):
        super().__init__(path)
        self._rows = {row["judged"]: row for row in read_lines(path) if "judged" in row}

    def get(self, judged: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The row of `judged` (see `fingerprint`), else that which `make` returns, written at once."""
        if judged not in self._rows:
            self._rows[judged] = make() | {"judged": judged}
            self.append(self._rows[judged])
        return self._rows[judged]


def judging(items: Iterable[Item]) -> Iterable[Item]:
    """The items, with a progress bar."""
    return tqdm(items, desc="judged", file=sys.stderr, mininterval=2)


def fingerprint(judge: Judge, question_id: Any, content: str) -> str:
    """Changes with the judge's model, the question and all that the judge is shown."""
    return hashlib.sha256(repr((judge.model, str(question_id), content)).encode()).hexdigest()[:22]
