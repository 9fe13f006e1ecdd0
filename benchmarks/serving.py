"""Many clients at an OpenAI server, with and without pruning: `python -m benchmarks.serving --url ... --served ...`.

Works with every server whose requests say what is dropped: `python -m dart serve --per-request` (`--field dart`) and
vLLM with the plugin (`--field mm_processor_kwargs`). Every request is first asked alone; an answer among many clients
that differs is counted as wrong, one that does not come as lost. Settings take turns at every number of clients. Where
the server's /metrics tell how full vLLM's KV cache is, the fullest moment is noted. Start the server without a prefix
cache: the same images are asked about again. JSON last line.
"""

from __future__ import annotations

import argparse
import base64
import json
import re
import statistics
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

from benchmarks.arguments import list_of, positive
from benchmarks.output import print_table, publish
from benchmarks.plot import Curve, check_chart, line_chart
from dart.utils import Parser, UserError, exits_cleanly, needed, provenance
from llava.eval.engine.examples import read_question_file

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = ROOT / "playground" / "data" / "mini" / "textvqa"
DIFFERENT = 60  # requests that differ from each other
FIELDS = ("dart", "mm_processor_kwargs")
PERCENTILES = 20  # of which the last one is the 95th
CACHE = re.compile(r"^vllm:kv_cache_usage_perc\S* (\S+)$", re.MULTILINE)  # between 0 and 1
LOOK_S = 0.1  # between two looks at the cache


@dataclass(frozen=True)
class Answer:
    """text: None where none came, error says why; seconds: to the first word, and to the last."""

    text: str | None
    first: float = 0.0
    total: float = 0.0
    tokens: int = 0
    error: str = ""


def messages(number: int) -> list[list[dict[str, Any]]]:
    """The first questions of the embedded TextVQA, as OpenAI's messages."""
    examples = read_question_file(QUESTIONS / "llava_textvqa_val_v051_ocr.jsonl", QUESTIONS / "train_images")[:number]
    made = []
    for each in examples:
        image = base64.b64encode(Path(each.image).read_bytes()).decode()
        parts = [
            {"type": "image_url", "image_url": {"url": f"data:image/jpeg;base64,{image}"}},
            {"type": "text", "text": each.text},
        ]
        made.append([{"role": "user", "content": parts}])
    return made


def extra_of(field: str, asked: Any) -> dict[str, Any]:
    """A request's own fields: what is dropped."""
    return {"dart": asked} if field == "dart" else {field: {"dart": asked}}


def ask(client: Any, model: str, extra: dict[str, Any], tokens: int, message: list[dict[str, Any]]) -> Answer:
    start, first, text, prompt = time.perf_counter(), 0.0, "", 0
    try:
        stream = client.chat.completions.create(
            model=model,
            messages=message,
            max_tokens=tokens,
            temperature=0,
            stream=True,
            stream_options={"include_usage": True},
            extra_body=extra,
        )
        for part in stream:
            if part.choices and part.choices[0].delta.content:
                first = first or time.perf_counter() - start
                text += part.choices[0].delta.content
            if part.usage is not None:
                prompt = part.usage.prompt_tokens
    except Exception as error:  # whatever the client raises: the request is lost
        return Answer(None, error=f"{type(error).__name__}: {error}")
    total = time.perf_counter() - start
    return Answer(text, first or total, total, prompt)


def measured(answers: Sequence[Answer], alone: Sequence[Answer], seconds: float) -> dict[str, Any]:
    """A row: what was lost or wrong, requests a second, seconds to the first word and to the last."""
    came = [each for each in answers if each.text is not None]
    pairs = zip(answers, cycle(alone), strict=False)
    row: dict[str, Any] = {
        "requests": len(answers),
        "lost": len(answers) - len(came),
        "wrong": sum(each.text not in (None, first.text) for each, first in pairs),
        "requests_per_s": round(len(came) / seconds, 3),
        "prompt_tokens": round(statistics.mean(each.tokens for each in came), 1) if came else None,
    }
    for name in ("first", "total"):
        values = [getattr(each, name) for each in came]
        if len(values) > 1:
            row[f"{name}_median_s"] = round(statistics.median(values), 4)
            row[f"{name}_p95_s"] = round(statistics.quantiles(values, n=PERCENTILES, method="inclusive")[-1], 4)
    if lost := [each.error for each in answers if each.text is None]:
        row["first_error"] = lost[0][:200]
    return row


def cache_share(url: str) -> float | None:
    """How full vLLM's KV cache is, 0 to 1, of the server whose API is at `url`; None where it does not tell."""
    try:
        with urllib.request.urlopen(f"{url.removesuffix('/v1')}/metrics", timeout=LOOK_S * 100) as answer:
            found = CACHE.search(answer.read().decode())
    except OSError:
        return None
    return float(found[1]) if found else None


@contextmanager
def cache_looks(url: str) -> Iterator[list[float]]:
    """How full the cache was at every look in the meantime; nothing where the server does not tell."""
    looks: list[float] = []
    over = threading.Event()

    def look() -> None:
        while (share := cache_share(url)) is not None:
            looks.append(share)
            if over.wait(LOOK_S):
                return

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield looks
    finally:
        over.set()
        thread.join()


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Raises UserError when the server does not answer a request that comes alone."""
    openai = needed("openai", "eval")
    client = openai.OpenAI(base_url=args.url, api_key=args.api_key, max_retries=0, timeout=args.timeout)
    asked = messages(min(DIFFERENT, args.requests))
    alone: dict[str, list[Answer]] = {}
    calls = {
        name: partial(ask, client, args.served, extra_of(args.field, value), args.tokens)
        for name, value in args.settings.items()
    }
    for name, call in calls.items():
        alone[name] = [call(message) for message in asked]
        if lost := [each.error for each in alone[name] if each.text is None]:
            raise UserError(f"{args.url}, setting {name}: {lost[0][:300]}")
    rows = []
    for clients in args.clients:
        for name, call in calls.items():
            with cache_looks(args.url) as looks, ThreadPoolExecutor(clients) as pool:
                start = time.perf_counter()
                answers = list(pool.map(call, [asked[k % len(asked)] for k in range(args.requests)]))
                seconds = time.perf_counter() - start
            cache = {"cache_peak": round(max(looks), 4)} if looks else {}
            rows.append({"setting": name, "clients": clients, **measured(answers, alone[name], seconds), **cache})
            print_table(rows[-1:])
    return rows


def settings(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = None
    if not isinstance(value, dict) or not value:
        raise argparse.ArgumentTypeError(
            f'expected JSON like {{"unpruned": false, "64": {{"keep": 64}}}}, got {text!r}'
        )
    return value


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1", help="of the server, with /v1")
    parser.add_argument("--served", required=True, help="the name that the server gives its model")
    parser.add_argument("--field", choices=FIELDS, default="dart", help="where a request says what is dropped")
    parser.add_argument("--settings", type=settings, default={"0.5": {"keep": 0.5}, "0.222": {"keep": 0.222}})
    parser.add_argument("--clients", type=list_of(positive), default=[1, 8, 32])
    parser.add_argument("--requests", type=positive, default=500, help="for each setting and number of clients")
    parser.add_argument("--tokens", type=positive, default=8, help="of an answer, at most")
    parser.add_argument("--timeout", type=float, default=600.0, help="seconds that a client waits")
    parser.add_argument("--api-key", default="none")
    parser.add_argument("--note", default="", help="about the server: its command")
    parser.add_argument("--out", help="such as docs/results/serving-cpu.json")
    parser.add_argument("--plot", help="a PNG file: requests a second over clients")
    args = parser.parse_args(argv)
    check_chart(args.plot)
    rows = run(args)
    if args.plot:
        curves = [
            Curve(name, [(row["clients"], row["requests_per_s"]) for row in rows if row["setting"] == name])
            for name in args.settings
        ]
        line_chart(Path(args.plot), args.served, "clients at a time", "requests a second", curves)
    publish({**provenance(), "server": args.note, "model": args.served, "rows": rows}, args.out)


if __name__ == "__main__":
    main()
