"""The endpoints."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import time
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.exceptions import HTTPException

from dart.serve.chat import ChatLimits, read_chat
from dart.serve.engine import Engine, Finished, Job, too_late
from dart.serve.errors import ApiError
from dart.serve.images import ImageLimits, read_image

LOOK_S = 0.1  # how often a request looks whether its client is still there
CLIENT_LEFT = 499  # nginx's status for it
Event = str | Finished | ApiError


@dataclass(frozen=True)
class Limits:
    """body: bytes of a request; seconds: for a request, from its arrival."""

    chat: ChatLimits
    images: ImageLimits
    body: int = 32_000_000
    seconds: float = 120.0


class Left(Exception):
    """The client is not there any more."""


def build_app(engine: Engine, limits: Limits, key: str | None) -> FastAPI:
    """key: what clients must send as `Authorization: Bearer KEY`; None: nothing."""

    @contextlib.asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await asyncio.to_thread(engine.close)

    app = FastAPI(lifespan=lifespan, openapi_url=None)
    started, metrics = int(time.time()), engine.metrics

    @app.exception_handler(ApiError)
    async def told(_: Request, error: ApiError) -> Response:
        return JSONResponse(error.body(), error.status)

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        wrong = ApiError(error.status_code, f"{request.method} {request.url.path}: {error.detail}", code="not_found")
        return JSONResponse(wrong.body(), error.status_code)

    def authorize(request: Request) -> None:
        if key is None:
            return
        sent = request.headers.get("authorization", "").encode()
        pairs = (hashlib.sha256(each).digest() for each in (sent, f"Bearer {key}".encode()))
        if not hmac.compare_digest(*pairs):
            raise ApiError(401, "the API key is missing or wrong", code="invalid_api_key")

    @app.get("/health")
    async def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/metrics")
    async def figures() -> Response:
        return PlainTextResponse(metrics.text(engine.inside), media_type="text/plain; version=0.0.4")

    @app.get("/v1/models")
    async def models(request: Request) -> dict[str, Any]:
        authorize(request)
        one = {"id": limits.chat.model, "object": "model", "created": started, "owned_by": "dart"}
        return {"object": "list", "data": [one]}

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        began = time.monotonic()
        try:
            authorize(request)
            job, events = await _submitted(request, engine, limits, began + limits.seconds)
            first = await _next(request, job, events)
        except ApiError as error:
            metrics.ended(error.status, time.monotonic() - began)
            raise
        except Left:
            metrics.ended(CLIENT_LEFT, time.monotonic() - began)
            return Response(status_code=CLIENT_LEFT)
        answer = _events(request, job, events, first)
        head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": limits.chat.model}
        if job.chat.stream:
            return StreamingResponse(_stream(answer, head, job, engine, began), media_type="text/event-stream")
        text, end = "", None
        try:
            async for event in answer:
                if isinstance(event, str):
                    text += event
                else:
                    end = event
        except Left:
            metrics.ended(CLIENT_LEFT, time.monotonic() - began)
            return Response(status_code=CLIENT_LEFT)
        metrics.ended(end.status if isinstance(end, ApiError) else 200, time.monotonic() - began)
        if not isinstance(end, Finished):
            raise end or too_late()
        message = {"role": "assistant", "content": text}
        choice = {"index": 0, "message": message, "finish_reason": end.reason, "logprobs": None}
        return JSONResponse({**head, "object": "chat.completion", "choices": [choice], "usage": _usage(end)})

    return app


async def _submitted(request: Request, engine: Engine, limits: Limits, ends: float) -> tuple[Job, asyncio.Queue[Event]]:
    """The request's job in the engine's queue. Raises ApiError or Left."""
    loop, events = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def tell(event: Event) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the server is shutting down
            loop.call_soon_threadsafe(events.put_nowait, event)

    engine.enter()
    try:
        async with asyncio.timeout(ends - time.monotonic()):
            body = await _body(request, limits.body)
            chat = await asyncio.to_thread(read_chat, body, limits.chat)
            images = await asyncio.to_thread(lambda: [read_image(url, limits.images) for url in chat.urls])
            prompt = await loop.run_in_executor(engine.prompts, engine.prompt, chat, images)
        job = Job(chat, ends, tell)
        engine.submit(job, prompt)
    except TimeoutError:
        engine.leave()
        raise too_late() from None
    except BaseException:
        engine.leave()
        raise
    return job, events


async def _body(request: Request, most: int) -> bytes:
    body = bytearray()
    async for block in request.stream():
        body += block
        if len(body) > most:
            raise ApiError(413, f"the request has more than {most} bytes", code="too_large")
    return bytes(body)


async def _next(request: Request, job: Job, events: asyncio.Queue[Event]) -> Event:
    """The next event. An ApiError before any text is raised; Left stops the job."""
    while not await request.is_disconnected():
        with contextlib.suppress(TimeoutError):
            event = await asyncio.wait_for(events.get(), LOOK_S)
            if isinstance(event, ApiError):
                raise event
            return event
    job.gone.set()
    raise Left


async def _events(request: Request, job: Job, events: asyncio.Queue[Event], first: Event) -> AsyncIterator[Event]:
    """All events, the last one a Finished or an ApiError. Raises Left."""
    try:
        event = first
        yield event
        while isinstance(event, str):
            try:
                event = await _next(request, job, events)
            except ApiError as error:
                event = error
            yield event
    finally:
        job.gone.set()


async def _stream(
    answer: AsyncIterator[Event], head: dict[str, Any], job: Job, engine: Engine, began: float
) -> AsyncIterator[str]:
    def chunk(delta: dict[str, str], reason: str | None = None) -> str:
        choice = {"index": 0, "delta": delta, "finish_reason": reason, "logprobs": None}
        return _line({**head, "object": "chat.completion.chunk", "choices": [choice]})

    status = CLIENT_LEFT
    try:
        yield chunk({"role": "assistant", "content": ""})
        async for event in answer:
            if isinstance(event, str):
                yield chunk({"content": event})
                continue
            status = event.status if isinstance(event, ApiError) else 200
            if isinstance(event, ApiError):
                yield _line(event.body())
                continue
            yield chunk({}, event.reason)
            if job.chat.usage:
                yield _line({**head, "object": "chat.completion.chunk", "choices": [], "usage": _usage(event)})
        yield "data: [DONE]\n\n"
    except Left:
        return
    finally:
        job.gone.set()
        engine.metrics.ended(status, time.monotonic() - began)


def _line(value: dict[str, Any]) -> str:
    return f"data: {json.dumps(value, ensure_ascii=False)}\n\n"


def _usage(end: Finished) -> dict[str, Any]:
    return {
        "prompt_tokens": end.prompt,
        "completion_tokens": end.completion,
        "total_tokens": end.prompt + end.completion,
        "visual_tokens": {"before": end.before, "after": end.after},
    }
