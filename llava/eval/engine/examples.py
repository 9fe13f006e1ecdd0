"""What the evaluation loop asks: one `Example` per question, read from LLaVA's question files."""

from __future__ import annotations

import functools
import hashlib
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

from PIL import Image

from dart.utils import UserError
from llava.eval.engine.answers import Key, key_of, read_lines
from llava.mm_utils import load_image, read_image

T = TypeVar("T")
QUESTION_FIELDS = ("question_id", "image", "text")


@dataclass(frozen=True)
class Example:
    """One question.

    text: the user's turn without the image's placeholder. image: a file, an encoded image (PNG, JPEG, ...), or None
    for a question about no image. prompt: what the answers file records, `text` unless the benchmark says otherwise.
    fields: further columns of the answer's row.
    """

    question_id: Any
    text: str
    image: Path | bytes | None
    prompt: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.prompt:
            object.__setattr__(self, "prompt", self.text)

    def picture(self) -> Image.Image | None:
        """The image as RGB. Raises FileNotFoundError or ValueError naming the question or the file."""
        if self.image is None:
            return None
        if isinstance(self.image, Path):
            return load_image(str(self.image))
        return read_image(io.BytesIO(self.image), "its image")


def read_question_file(path: Path, images: Path) -> list[Example]:
    """LLaVA's JSON lines {"question_id", "image", "text", ...}, images relative to the folder `images`.

    Raises UserError for a broken line, one without the needed fields, and a file without questions.
    """
    examples = []
    for number, row in enumerate(read_lines(path), 1):
        if missing := [f for f in QUESTION_FIELDS if f not in row]:
            raise UserError(
                f"{path} question {number} lacks {', '.join(missing)}; expected the fields {', '.join(QUESTION_FIELDS)}"
            )
        if not isinstance(row["image"], str) or not isinstance(row["text"], str):
            raise UserError(f"{path} question {number}: image and text must be strings; repair the line")
        examples.append(Example(row["question_id"], row["text"], images / row["image"]))
    if not examples:
        raise UserError(f"{path} has no questions; expected JSON lines with the fields {', '.join(QUESTION_FIELDS)}")
    return examples


def chunk_of(items: Sequence[T], number: int, index: int) -> Sequence[T]:
    """The index-th of `number` consecutive parts. Raises UserError for a part that does not exist."""
    if number < 1 or not 0 <= index < number:
        raise UserError(f"--chunk-idx {index} must be between 0 and --num-chunks {number} - 1")
    size = math.ceil(len(items) / number)
    return items[index * size : (index + 1) * size]


def open_questions(examples: Sequence[Example], done: Counter[Key]) -> list[Example]:
    """The examples without an answer, in order; one that is asked twice needs two. done: how many answers there are."""
    left = done.copy()
    todo = []
    for example in examples:
        key = key_of(example.question_id, example.prompt)
        if left[key]:
            left[key] -= 1
        else:
            todo.append(example)
    return todo


def digest_of(examples: Sequence[Example], failed: Mapping[Key, str | None] = MappingProxyType({})) -> str:
    """A hash of the questions and of their images' names and contents.

    failed: questions whose image file could not be read -> the `content_of` it then, which counts: it may be mended.
    """
    digest = hashlib.sha256()
    for example in examples:
        image, key = example.image, key_of(example.question_id, example.prompt)
        if isinstance(image, Path):
            shown: Any = (image.name, failed[key] if key in failed else content_of(image))
        else:
            shown = image and hashlib.sha256(image).hexdigest()
        digest.update(repr((example.question_id, example.text, example.prompt, shown)).encode())
    return digest.hexdigest()


def content_of(path: Path) -> str | None:
    """A hash of a file, None where there is none; read again only when its size or time has changed."""
    if not path.is_file():
        return None
    stat = path.stat()
    return _hash(path, stat.st_size, stat.st_mtime_ns)


@functools.cache
def _hash(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_pictures(examples: Sequence[Example], folder: Path, source: str) -> None:
    """Raise UserError naming the first image that a benchmark's folder lacks."""
    files = {e.image: None for e in examples if isinstance(e.image, Path)}
    missing = [path for path in files if not path.is_file()]
    if missing:
        more = f" and {len(missing) - 1} more of {len(files)}" if len(missing) > 1 else ""
        raise UserError(f"benchmark folder {folder} lacks the picture {missing[0]}{more}; get it from {source}")
