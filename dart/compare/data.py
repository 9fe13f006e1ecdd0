"""What is asked: samples with images or videos, and who says how right an answer is.

A data set is a file or folder of the user's own (`own_data`), or a name that a plug-in knows: an entry point of the
group `dart.data`, a function without arguments that returns {name: open}, where `open(folder)` makes the `DataSet` of
that name from the files in `folder` (None: from where the plug-in keeps its own).
"""

from __future__ import annotations

import difflib
import hashlib
import io
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

from PIL import Image

from dart.media import Video, decoded_image, read_image, read_video
from dart.records import read_lines
from dart.utils import UserError, plug_ins

GROUP = "dart.data"
FILE = "questions.jsonl"  # of a folder of the user's own
FIELDS = "question, answer or answers, and image, images, video or videos"
ARTICLES = frozenset({"a", "an", "the"})
MARKS = ".,;:!?\"'()[]{}"
MAX_NEW_TOKENS = 64
SEED = 0


def contents_of(path: Path) -> Iterator[bytes]:
    """Name and content of a file, or of the files of a folder of frames."""
    for file in sorted(each for each in path.iterdir() if each.is_file()) if path.is_dir() else [path]:
        yield file.name.encode()
        with file.open("rb") as opened:
            yield hashlib.file_digest(opened, "sha256").digest()


Opener = Callable[[Path | None], "DataSet"]


@dataclass(frozen=True)
class Sample:
    """One question.

    id: its own within the data set. question: the user's turn, without marks for images. images: files, or encoded
    images; videos: files or folders of frames. references: right answers, to be shown. unit: samples of one unit are
    counted together, as right as the worst of them (by default: itself).
    """

    id: str
    question: str
    images: Sequence[Path | bytes]
    videos: Sequence[Path]
    references: Sequence[str]
    unit: str = ""

    @property
    def counted_as(self) -> str:
        """What this sample's score is counted with: its unit, else itself."""
        return self.unit or self.id

    def pictures(self) -> list[Image.Image]:
        """The images as RGB. Raises UserError naming the sample or the file."""
        return [self._picture(image) for image in self.images]

    def films(self, frames: int) -> list[Video]:
        """At most `frames` frames of each video. Raises UserError."""
        return [read_video(str(path), frames, None) for path in self.videos]

    def _picture(self, image: Path | bytes) -> Image.Image:
        if isinstance(image, Path):
            return read_image(str(image))
        return decoded_image(io.BytesIO(image), f"sample {self.id}: its image")


@dataclass(frozen=True)
class DataSet:
    """samples: those about something to look at. max_new_tokens: of an answer.

    grade: from the answers (sample id -> text) to some or all samples, how right each is, from 0 to 1. official: the
    benchmark's own figure from the answers to all samples, or None. note: what a reader must know, for instance how
    many questions were left out.
    """

    name: str
    samples: Sequence[Sample]
    grade: Callable[[Mapping[str, str]], dict[str, float]]
    max_new_tokens: int = MAX_NEW_TOKENS
    official: Callable[[Mapping[str, str]], float] | None = None
    note: str = ""

    def limited(self, most: int | None) -> DataSet:
        """With at most `most` units, drawn at random with a fixed seed; without an official figure if any is left out.

        A larger number contains a smaller one. Evenly spaced units would be all of one kind where kinds take turns.
        """
        units = [list(group) for _, group in groupby(self.samples, key=lambda sample: sample.counted_as)]
        if most is None or most >= len(units):
            return self
        order = random.Random(SEED).sample(range(len(units)), len(units))
        chosen = [sample for k in sorted(order[:most]) for sample in units[k]]
        return replace(self, samples=chosen, official=None)

    def digest(self) -> str:
        """A hash of questions, references and images (of files: names and contents)."""
        digest = hashlib.sha256()
        for sample in self.samples:
            digest.update(repr((sample.id, sample.question, list(sample.references), sample.unit)).encode())
            for source in (*sample.images, *sample.videos):
                for part in [source] if isinstance(source, bytes) else contents_of(source):
                    digest.update(hashlib.sha256(part).digest())
        return digest.hexdigest()


def open_data(text: str) -> DataSet:
    """`NAME` or `NAME=FOLDER` of a plug-in's data set, or the path of one's own.

    Raises UserError with the known names, or what is wrong in which line.
    """
    name, _, folder = text.partition("=")
    known = _known()
    if name in known:
        if folder and not Path(folder).is_dir():
            raise UserError(f"--data {text}: {folder} is no folder; give the one that holds the benchmarks' folders")
        return _checked(known[name](Path(folder) if folder else None))
    if Path(text).exists():
        return _checked(own_data(Path(text)))
    near = difflib.get_close_matches(name, known, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    raise UserError(
        f"--data {text} is neither a file, a folder nor a data set that is known{hint}; known: "
        f"{', '.join(sorted(known)) or f'none (no entry point {GROUP} is installed)'}"
    )


def _known() -> dict[str, Opener]:
    found: dict[str, Opener] = {}
    for names in plug_ins(GROUP).values():
        found |= names()
    return found


def _checked(data: DataSet) -> DataSet:
    if not data.samples:
        raise UserError(f"data set {data.name} has no question about an image or a video")
    name, times = Counter(sample.id for sample in data.samples).most_common(1)[0]
    if times > 1:
        raise UserError(f"data set {data.name} has {times} samples of the id {name!r}: ids must differ")
    return data


def own_data(path: Path) -> DataSet:
    """A JSON-lines file, or a folder with `questions.jsonl`: {"question", "answer", "image"} a line.

    Also `answers` (several right ones), `images`, `video`, `videos`, and `id`. Files are looked for beside the
    JSON-lines file and in `images/` and `videos/` there. An answer is right when it equals a reference after
    `normalised`. Raises UserError naming the line and what it lacks.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise UserError(f"--data {path}: there is no {FILE} in this folder; expected one line of {FIELDS} per question")
    samples = [_sample(row, file, number) for number, row in enumerate(read_lines(file), 1)]
    references = {sample.id: sample.references for sample in samples}
    name = path.resolve().stem if path.is_file() else path.resolve().name
    return DataSet(name, samples, partial(_grade, references))


def _grade(references: Mapping[str, Sequence[str]], texts: Mapping[str, str]) -> dict[str, float]:
    return {name: equals_one(references[name], text) for name, text in texts.items()}


def _sample(row: dict[str, Any], file: Path, number: int) -> Sample:
    where = f"{file} question {number}"

    def several(one: str, many: str) -> list[str]:
        value = row.get(many, row.get(one, []))
        values = value if isinstance(value, list) else [value]
        return [str(each) for each in values]

    references = several("answer", "answers")
    images, videos = several("image", "images"), several("video", "videos")
    if not isinstance(row.get("question"), str) or not references or not (images or videos):
        raise UserError(f"{where} lacks a field: expected {FIELDS}, got {', '.join(row) or 'nothing'}")
    files = [_found(file.parent, name, "images", where) for name in images]
    films = [_found(file.parent, name, "videos", where) for name in videos]
    name = str(row.get("id", row.get("question_id", number)))
    return Sample(name, row["question"], files, films, references)


def _found(home: Path, name: str, folder: str, where: str) -> Path:
    for path in (home / name, home / folder / name):
        if path.exists():
            return path
    raise UserError(f"{where}: {name} is neither in {home} nor in {home / folder}")


def normalised(text: str) -> str:
    """Lower case, words without marks at their ends and without articles, one space between."""
    words = [word.strip(MARKS) for word in text.lower().split()]
    return " ".join(word for word in words if word and word not in ARTICLES)


def equals_one(references: Sequence[str], answer: str) -> float:
    """1.0 when the normalised answer is one of the normalised references, else 0.0."""
    return float(normalised(answer) in {normalised(reference) for reference in references})
