"""Images and videos from disk."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence

from dart.utils import UserError, installed_by, one_line

IMAGES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
ANIMATIONS = (".apng", ".gif", ".png", ".webp")  # what Pillow reads itself
DEFAULT_FPS = 2.0  # of frames in a folder, whose times nobody tells
MILLISECONDS = 1000.0
# A model that pads to a square makes side * side pixels of an image, however thin it is.
MAX_SIDE, MAX_RATIO = 13_000, 200


@dataclass(frozen=True)
class Video:
    """Some frames of a video: RGB, one size.

    total: frames of the source; fps: how many of them a second has; indices: which of them these are, ascending.
    """

    frames: list[Image.Image]
    total: int
    fps: float
    indices: list[int]


def read_image(path: str) -> Image.Image:
    """An image as RGB, EXIF rotation ignored as the models' processors do. Raises UserError naming the file."""
    if not Path(path).is_file():
        raise UserError(f"image {path} does not exist: give the path of an image file")
    return decoded_image(path, f"image {path}")


def decoded_image(source: Any, what: str) -> Image.Image:
    """An encoded image, a path or a file object, as RGB. Raises UserError that begins with `what`."""
    with _naming(what, "an image"), Image.open(source) as image:
        _check_size(image.size, what)
        return image.convert("RGB")


def read_video(path: str, most: int, fps: float | None) -> Video:
    """At most `most` frames, evenly spaced, of a folder of images (sorted by the numbers in their names) or a file.

    path: a folder, an animated image, or a film, which needs the extra `hf`. most: 1 or more. fps: frames per second of
    the source, None: the file's own, or 2 for a folder. Raises UserError naming the input.
    """
    source = Path(path)
    if source.is_dir():
        video = _folder(source, most)
    elif not source.is_file():
        raise UserError(f"video {path} does not exist: give a video file or a folder of frames")
    else:
        read = _animation if source.suffix.lower() in ANIMATIONS else _film
        with _naming(f"video {path}", "a video"):
            video = read(source, most)
    if len({frame.size for frame in video.frames}) > 1:
        raise UserError(f"the frames of video {path} differ in size: all must be of one size")
    return Video(video.frames, video.total, fps or video.fps, video.indices)


def spaced(total: int, most: int) -> list[int]:
    """The middles of `most` equal stretches of 0 .. total - 1; all of them where there are no more."""
    count = min(total, most)
    return [(2 * k + 1) * total // (2 * count) for k in range(count)]


@contextlib.contextmanager
def _naming(what: str, expected: str) -> Iterator[None]:
    """Turns whatever a decoder raises into a UserError about `what`."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # sides are checked here
            yield
    except UserError:
        raise
    except Exception as error:  # Pillow and FFmpeg raise a dozen kinds for broken files
        message = f"{what} cannot be read: it is truncated, too large or not {expected} ({one_line(error)})"
        raise UserError(message) from error


def wrong_size(size: tuple[int, int]) -> str | None:
    """What is wrong with an image of this size, for a message about it; None: nothing."""
    if max(size) <= MAX_SIDE and max(size) <= MAX_RATIO * min(size):
        return None
    return (
        f"has {size[0]} x {size[1]} pixels: expected sides of at most {MAX_SIDE} pixels, one at most {MAX_RATIO} times "
        "the other"
    )


def _check_size(size: tuple[int, int], what: str) -> None:
    if (wrong := wrong_size(size)) is not None:
        raise UserError(f"{what} {wrong}; scale or cut it")


def _folder(folder: Path, most: int) -> Video:
    files = sorted((p for p in folder.iterdir() if p.suffix.lower() in IMAGES), key=_by_number)
    if not files:
        raise UserError(f"video folder {folder} has no images: expected frames ({', '.join(IMAGES)})")
    indices = spaced(len(files), most)
    return Video([read_image(str(files[k])) for k in indices], len(files), DEFAULT_FPS, indices)


def _by_number(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _animation(path: Path, most: int) -> Video:
    with Image.open(path) as image:
        _check_size(image.size, f"video {path}")
        total = getattr(image, "n_frames", 1)
        if total == 1:
            raise UserError(f"video {path} is a still image: give it as --image")
        indices, frames, milliseconds = spaced(total, most), [], 0.0
        for k, frame in enumerate(ImageSequence.Iterator(image)):
            milliseconds += float(frame.info.get("duration") or 0)
            if k in indices:
                frames.append(frame.convert("RGB"))
    return Video(frames, total, MILLISECONDS * total / milliseconds if milliseconds else DEFAULT_FPS, indices)


def _film(path: Path, most: int) -> Video:
    """Decoded twice: what a file says of its number of frames is often missing or wrong."""
    try:
        import av
    except ImportError:
        raise UserError(
            f"video {path} needs the package av, which is not installed: {installed_by('hf')}, or give a "
            f"folder of frames or an animated {', '.join(ANIMATIONS)}"
        ) from None

    def decoded(container: Any) -> Iterator[Any]:
        if not container.streams.video:
            raise UserError(f"video {path} has no video stream")
        return container.decode(container.streams.video[0])

    with av.open(str(path)) as container:
        total = sum(1 for _ in decoded(container))
    if not total:
        raise UserError(f"video {path} has no frames")
    indices = spaced(total, most)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        _check_size((stream.width, stream.height), f"video {path}")
        fps = float(stream.average_rate or DEFAULT_FPS)
        return Video([f.to_image() for k, f in enumerate(decoded(container)) if k in indices], total, fps, indices)
