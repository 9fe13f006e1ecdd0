"""The model behind the endpoint: prompts are made in one thread, answers in another, one at a time."""

from __future__ import annotations

import copy
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from PIL import Image
from transformers import StoppingCriteriaList

import dart
from dart.cli.loading import Loaded, Prompt, TransformersModel
from dart.cli.measure import GREEDY, Stream, now
from dart.serve.chat import Chat
from dart.serve.errors import ApiError, refused
from dart.serve.metrics import Metrics
from dart.utils import UserError, one_line

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Finished:
    """The end of an answer. prompt: tokens before pruning; before, after: visual tokens; reason: stop or length."""

    prompt: int
    completion: int
    before: int
    after: int
    reason: str


@dataclass(eq=False)
class Job:
    """A request on its way. ends: its deadline, by `time.monotonic`; tell: takes pieces of text, then one Finished
    or an ApiError, from the worker's thread; gone: set when the client has left."""

    chat: Chat
    ends: float
    tell: Callable[[str | Finished | ApiError], None]
    gone: threading.Event = field(default_factory=threading.Event)

    @property
    def late(self) -> bool:
        """Is its time up?"""
        return time.monotonic() > self.ends


class _Watch(Stream):
    """Notes when the first token comes, and stops for a client that left or a time that is up."""

    def __init__(self, job: Job, prompt: Prompt, tokenizer: Any, device: torch.device):
        super().__init__(job.tell, lambda: job.gone.is_set() or job.late, prompt.skip, tokenizer)
        self.device = device
        self.first: float | None = None

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor, **kwargs: Any) -> Any:
        if self.first is None:
            self.first = now(self.device)
        return super().__call__(input_ids, scores, **kwargs)


class Engine:
    """Admits at most `waiting` requests beside the one that runs."""

    def __init__(self, loaded: Loaded, config: dart.DartConfig, waiting: int, metrics: Metrics):
        self.loaded, self.model, self.metrics = loaded, loaded.model, metrics
        self.decoder = copy.deepcopy(loaded.tokenizer)  # a fast tokenizer cannot encode and decode in two threads
        self.most, self.inside, self.lock = waiting + 1, 0, threading.Lock()
        self.prompts = ThreadPoolExecutor(1, "prompts")
        self.answers = ThreadPoolExecutor(1, "answers")
        self.jobs: set[Job] = set()
        dart.prune(self.model, config).remove()  # what cannot be pruned is refused at the start
        ends = self.model.generation_config.eos_token_id
        self.ends = set(ends) if isinstance(ends, list) else {ends}
        self.longest = getattr(self.model.config.get_text_config(decoder=True), "max_position_embeddings", None)

    def enter(self) -> None:
        """A place for one more request, to be left with `leave`. Raises ApiError when all are taken."""
        with self.lock:
            if self.inside >= self.most:
                raise ApiError(
                    429, f"{self.inside} requests wait or run, which is the limit: try again later", code="queue_full"
                )
            self.inside += 1

    def leave(self) -> None:
        """A request that `enter` let in has ended."""
        with self.lock:
            self.inside -= 1

    def prompt(self, chat: Chat, images: list[Image.Image]) -> Prompt:
        """Raises ApiError for what the model cannot take."""
        if len(chat.messages) > 1 and not isinstance(self.loaded, TransformersModel):
            raise refused("this checkpoint's format takes one user message, not a conversation", "messages")
        try:
            prompt = self.loaded.prompt(chat.messages, images, [])
        except (UserError, ValueError) as error:
            raise refused(one_line(error), "messages") from error
        if self.longest and prompt.skip + chat.max_tokens > self.longest:
            raise refused(
                f"{prompt.skip} tokens of the prompt and max_tokens {chat.max_tokens} are more than the model's "
                f"{self.longest}",
                "max_tokens",
            )
        return prompt

    def submit(self, job: Job, prompt: Prompt) -> None:
        """Queue the job; its place is left when it ends."""
        self.answers.submit(self._run, job, prompt)

    def close(self) -> None:
        """Stop what runs and drop what waits."""
        for job in self.jobs.copy():
            job.gone.set()
        for pool in (self.prompts, self.answers):
            pool.shutdown(wait=True, cancel_futures=True)

    def _run(self, job: Job, prompt: Prompt) -> None:
        self.jobs.add(job)
        try:
            job.tell(self._answer(job, prompt))
        except ApiError as error:
            job.tell(error)
        except torch.OutOfMemoryError:
            job.tell(ApiError(500, "the device has too little memory for this request", code="out_of_memory"))
        except ValueError as error:  # what only a prompt shows, such as a budget that the stages cannot reach
            job.tell(refused(one_line(error)))
        except Exception:
            logger.exception("a request failed")
            job.tell(ApiError(500, "the server failed on this request: its log says why", code="internal_error"))
        finally:
            self.jobs.discard(job)
            self.leave()

    def _answer(self, job: Job, prompt: Prompt) -> Finished:
        chat, device = job.chat, self.model.device
        if job.late:
            raise too_late()
        if job.gone.is_set():
            raise refused("the client has left")
        watch = _Watch(job, prompt, self.decoder, device)
        if chat.seed is not None:
            torch.manual_seed(chat.seed)
        try:
            handle = dart.prune(self.model, chat.config)
        except TypeError as error:
            raise refused(one_line(error), "dart") from error
        with handle:
            began = now(device)
            out = self.model.generate(
                **prompt.inputs,
                **_sampling(chat),
                max_new_tokens=chat.max_tokens,
                stopping_criteria=StoppingCriteriaList([watch]),
            )
        ids, report = out[0, prompt.skip :].tolist(), handle.last
        before = len(prompt.positions)
        after = before if report is None else report.visual_after[0]
        length = prompt.skip if report is None else report.tokens_before
        self.metrics.generated(before, after, len(ids), (watch.first or now(device)) - began)
        ended = bool(ids) and ids[-1] in self.ends
        if job.late and not ended and len(ids) < chat.max_tokens:
            raise too_late()
        watch.grow(ids, last=True)
        return Finished(length, len(ids), before, after, "stop" if ended else "length")


def too_late() -> ApiError:
    """The answer to a request whose time is up."""
    return ApiError(504, "the time limit of a request is up", code="timeout")


def _sampling(chat: Chat) -> dict[str, Any]:
    if chat.temperature == 0:
        return GREEDY
    return {"do_sample": True, "num_beams": 1, "temperature": float(chat.temperature), "top_p": chat.top_p, "top_k": 0}
