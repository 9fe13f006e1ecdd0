"""Images and videos are looked at before a stock model gets them: some of them skip what they cannot read."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from PIL.Image import Image

from dart import PruneHandle
from dart.utils import UserError, one_line

VIDEO_ENDINGS = (".mp4", ".avi", ".mov")  # the ones that the stock models take for a video


def check_video(path: str) -> None:
    """Raises UserError for a video that is not there, cannot be read, or has no frames."""
    import decord

    if not os.path.isfile(path):
        raise UserError(f"video {path} does not exist")
    try:
        frames = len(decord.VideoReader(path))
    except (RuntimeError, decord.DECORDError) as error:
        raise UserError(f"video {path} cannot be read ({one_line(error)[:80]}): expected a whole video file") from error
    if frames == 0:
        raise UserError(f"video {path} has no frames")


def checked_visuals(doc_to_visual: Callable[[Any], Any], handle: PruneHandle | None = None) -> Callable[[Any], Any]:
    """A task's `doc_to_visual` that raises UserError for an image or video that cannot be read.

    handle: whose strategy may want other images; videos stay as they are.
    """

    def visuals_of(doc: Any) -> Any:
        visuals = _read(doc_to_visual, doc)
        for visual in visuals or []:
            if isinstance(visual, str):
                if not visual.lower().endswith(VIDEO_ENDINGS):
                    raise UserError(f"{visual} is neither a picture nor a video ({', '.join(VIDEO_ENDINGS)})")
                check_video(visual)
        return [_prepared(visual, handle) for visual in visuals] if visuals else visuals

    return visuals_of


def _prepared(visual: Any, handle: PruneHandle | None) -> Any:
    """An image as the handle's strategy wants it."""
    return visual if handle is None or not isinstance(visual, Image) else handle.prepare([visual])[0]


def checked_messages(
    doc_to_messages: Callable[[Any], Any], system: str | None, handle: PruneHandle | None = None
) -> Callable[[Any], Any]:
    """The same for a task's `doc_to_messages`; system: a system prompt to put first, None: the template's own."""

    def messages_of(doc: Any) -> Any:
        messages = _read(doc_to_messages, doc)
        for part in (part for message in messages for part in message["content"]):
            if part["type"] == "video" and isinstance(part["url"], str):
                check_video(part["url"])
            elif part["type"] == "image":
                part["url"] = _prepared(part["url"], handle)
        if system is not None and messages[0]["role"] != "system":
            return [{"role": "system", "content": [{"type": "text", "text": system}]}, *messages]
        return messages

    return messages_of


def _read(function: Callable[[Any], Any], doc: Any) -> Any:
    try:
        return function(doc)
    except OSError as error:  # PIL's UnidentifiedImageError and FileNotFoundError are both of this kind
        raise UserError(f"a picture cannot be read: {error}") from error
