"""Pictures and videos from disk."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, ImageSequence

from dart.cli.errors import UserError, one_line

PICTURES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp")
ANIMATIONS = (".apng", ".gif", ".png", ".webp")  # what Pillow reads itself
DEFAULT_FPS = 2.0  # of frames in a folder, whose times nobody tells
MILLISECONDS = 1000.0


@dataclass(frozen=True)
class Video:
    """Frames (RGB, one size) and how many of them a second has."""

    frames: list[Image.Image]
    fps: float


def read_image(path: str) -> Image.Image:
    """A picture as RGB, EXIF rotation ignored as the models' processors do. Raises UserError naming the file."""
    if not Path(path).is_file():
        raise UserError(f"picture {path} does not exist: give the path of an image file")
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(
            f"picture {path} cannot be read: it is truncated or not an image ({one_line(error)})"
        ) from error


def read_video(path: str, most: int, fps: float | None) -> Video:
    """At most `most` frames, evenly spaced, of a folder of pictures (sorted by the numbers in their names) or a file.

    fps: frames a second of the source, None: the file's own, or 2 for a folder. Raises UserError naming the input.
    """
    source = Path(path)
    if source.is_dir():
        frames, rate = _folder(source, most), DEFAULT_FPS
    elif not source.is_file():
        raise UserError(f"video {path} does not exist: give a video file or a folder of frames")
    elif source.suffix.lower() in ANIMATIONS:
        frames, rate = _animation(source, most)
    else:
        frames, rate = _file(source, most)
    total, taken = frames
    if len({frame.size for frame in taken}) > 1:
        raise UserError(f"the frames of video {path} differ in size: all must be of one size")
    return Video(taken, (fps or rate) * len(taken) / total)


def spaced(total: int, most: int) -> list[int]:
    """The middles of `most` equal stretches of 0 .. total - 1; all of them where there are no more."""
    count = min(total, most)
    return [(2 * k + 1) * total // (2 * count) for k in range(count)]


Frames = tuple[int, list[Image.Image]]  # (frames in all, those that were taken)


def _folder(folder: Path, most: int) -> Frames:
    files = sorted((p for p in folder.iterdir() if p.suffix.lower() in PICTURES), key=_by_number)
    if not files:
        raise UserError(f"video folder {folder} has no pictures: expected frames ({', '.join(PICTURES)})")
    return len(files), [read_image(str(files[k])) for k in spaced(len(files), most)]


def _by_number(path: Path) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", path.name)]


def _animation(path: Path, most: int) -> tuple[Frames, float]:
    try:
        with Image.open(path) as image:
            total = getattr(image, "n_frames", 1)
            if total == 1:
                raise UserError(f"video {path} is a still picture: give it as --image")
            wanted, taken, milliseconds = set(spaced(total, most)), [], 0.0
            for k, frame in enumerate(ImageSequence.Iterator(image)):
                milliseconds += float(frame.info.get("duration") or 0)
                if k in wanted:
                    taken.append(frame.convert("RGB"))
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UserError(f"video {path} cannot be read: it is truncated or no video ({one_line(error)})") from error
    return (total, taken), MILLISECONDS * total / milliseconds if milliseconds else DEFAULT_FPS


def _file(path: Path, most: int) -> tuple[Frames, float]:
    try:
        import av
    except ImportError:
        raise UserError(
            f"video {path} needs the package av, which is not installed: pip install 'dart-vlm[video]', or give a "
            f"folder of frames or an animated {', '.join(ANIMATIONS)}"
        ) from None
    try:
        with av.open(str(path)) as container:
            total = sum(1 for _ in _decoded(container))
        wanted = set(spaced(total, most)) if total else set()
        with av.open(str(path)) as container:
            rate = float(container.streams.video[0].average_rate or DEFAULT_FPS)
            taken = [frame.to_image() for k, frame in enumerate(_decoded(container)) if k in wanted]
    except (av.error.FFmpegError, IndexError, OSError, ValueError) as error:
        raise UserError(f"video {path} cannot be read: it is truncated or no video ({one_line(error)})") from error
    if not taken:
        raise UserError(f"video {path} has no frames")
    return (total, taken), rate


def _decoded(container: Any) -> Iterator[Any]:
    return container.decode(container.streams.video[0])


def read_all(images: Sequence[str], videos: Sequence[str], frames: int, fps: float | None) -> tuple[list, list[Video]]:
    """(pictures, videos) of a command line."""
    return [read_image(path) for path in images], [read_video(path, frames, fps) for path in videos]
