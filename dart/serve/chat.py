"""The body of a chat request: checked, and turned into what the model is asked."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from dart import strategies
from dart.config import DartConfig
from dart.serve.errors import ApiError, refused
from dart.utils import SURROGATE, is_text, one_line

ROLES = ("system", "user", "assistant")
BUDGET = ("keep", "strategy", "exact", "seed")
KNOWN = {"messages", "model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "seed", "stream"}
KNOWN |= {"stream_options", "dart"}
IGNORED = {"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"}
# Accepted with the value that changes nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "logprobs": (False,),
    "stop": ([],),
    "tools": ([],),
    "response_format": ({"type": "text"},),
}
MAX_TEMPERATURE, MAX_SEED = 2, 2**63 - 1


@dataclass(frozen=True)
class Chat:
    """messages: in transformers' form, with `{"type": "image"}` for each of `urls`, in this order.

    temperature 0: greedy. usage: whether a stream ends with the numbers of tokens.
    """

    messages: list[dict[str, Any]]
    urls: list[str]
    config: DartConfig
    max_tokens: int
    temperature: float
    top_p: float
    seed: int | None
    stream: bool
    usage: bool


@dataclass(frozen=True)
class ChatLimits:
    """max_tokens: of an answer, also the default; images: of a request; per_request: whether it may set its budget."""

    model: str
    config: DartConfig
    max_tokens: int = 1024
    images: int = 8
    per_request: bool = False


def read_chat(body: bytes, limits: ChatLimits) -> Chat:
    """The request in `body`. Raises ApiError naming the field that is wrong."""
    try:
        data = json.loads(body)
    except (ValueError, RecursionError):
        raise refused("the request's body is not valid JSON") from None
    if SURROGATE in body.lower() and not is_text(data):
        raise refused("the request's body has half a character (a lone \\ud800 to \\udfff)")
    if not isinstance(data, dict):
        raise refused("the request's body is not a JSON object")
    data = {name: value for name, value in data.items() if value is not None}
    _check_fields(data)
    if data.get("model", limits.model) != limits.model:
        raise ApiError(404, f"this server has one model, {limits.model!r}", "model", "model_not_found")
    messages, urls = _messages(data.get("messages"))
    if not 1 <= len(urls) <= limits.images:
        raise refused(f"the messages have {len(urls)} images: expected 1 to {limits.images}", "messages")
    name = "max_completion_tokens" if "max_completion_tokens" in data else "max_tokens"
    options = data.get("stream_options", {})
    if not isinstance(options, dict):
        raise refused("stream_options is not an object", "stream_options")
    return Chat(
        messages,
        urls,
        _config(data.get("dart"), limits),
        int(_number(data, name, limits.max_tokens, 1, limits.max_tokens, whole=True)),
        _number(data, "temperature", 0, 0, MAX_TEMPERATURE),
        _number(data, "top_p", 1, 0, 1),
        int(_number(data, "seed", 0, 0, MAX_SEED, whole=True)) if "seed" in data else None,
        _flag(data, "stream"),
        _flag(options, "include_usage"),
    )


def _check_fields(data: dict[str, Any]) -> None:
    for name, value in data.items():
        if name in KNOWN or name in IGNORED:
            continue
        if name not in NEUTRAL:
            raise refused(f"the field {name!r} is not supported", name)
        if value not in NEUTRAL[name]:
            raise refused(f"{name} is supported only as {json.dumps(NEUTRAL[name][0])}", name)


def _number(data: dict[str, Any], name: str, default: float, low: float, high: float, whole: bool = False) -> float:
    value = data.get(name, default)
    kinds = (int,) if whole else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
        raise refused(f"{name} is not {'a whole' if whole else 'a'} number from {low} to {high}", name)
    return value


def _flag(data: dict[str, Any], name: str) -> bool:
    value = data.get(name, False)
    if not isinstance(value, bool):
        raise refused(f"{name} is neither true nor false", name)
    return value


def _config(given: Any, limits: ChatLimits) -> DartConfig:
    if given is None:
        return limits.config
    if not limits.per_request:
        raise refused("this server was started without --per-request: the field 'dart' is not accepted", "dart")
    if not isinstance(given, dict) or not given.keys() <= set(BUDGET):
        raise refused(f"dart is not an object with fields of {', '.join(BUDGET)}", "dart")
    try:
        config = dataclasses.replace(limits.config, **{k: v for k, v in given.items() if v is not None})
        strategies.in_model(config.strategy)
    except (TypeError, ValueError) as error:
        raise refused(one_line(error), "dart") from error
    return config


def _messages(given: Any) -> tuple[list[dict[str, Any]], list[str]]:
    if not isinstance(given, list) or not given:
        raise refused("messages is not a list of at least one message", "messages")
    urls: list[str] = []
    messages = []
    for message in given:
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise refused(f"a message is not an object with a role of {', '.join(ROLES)}", "messages")
        content = message.get("content")
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        if not isinstance(parts, list):
            raise refused("a message's content is neither a text nor a list of parts", "messages")
        messages.append({"role": message["role"], "content": [_part(part, urls) for part in parts]})
    return messages, urls


def _part(part: Any, urls: list[str]) -> dict[str, str]:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    image = part.get("image_url") if kind == "image_url" else None
    url = image.get("url") if isinstance(image, dict) else None
    if not isinstance(url, str):
        raise refused('a part is neither {"type": "text", "text"} nor {"type": "image_url", "image_url"}', "messages")
    urls.append(url)
    return {"type": "image"}
