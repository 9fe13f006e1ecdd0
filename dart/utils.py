"""What every command shares: errors in one line, JSON files that are whole or absent, provenance, checkpoints by name.

Imports nothing large, so that a command answers `--help` at once.
"""

from __future__ import annotations

import argparse
import functools
import gc
import hashlib
import importlib
import json
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata, util
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
Sample = dict[str, float]
UNFINISHED, USAGE_ERROR = 1, 2
INTERRUPTED = 130
DTYPES = ("float32", "float16", "bfloat16")
UNREAD = ("*.gguf", "*.h5", "*.msgpack", "*.onnx", "*.onnx_data", "*.pth")  # of a hub repository, by no loader here
WEIGHTS = ("config.json", "*.safetensors", "*.bin")
SURROGATE = rb"\ud"  # how half a character, or one of two halves, begins in JSON
BLOCK_BYTES, LARGE_BYTES = 1 << 20, 64 << 20
SETTLED_SECONDS = 2.0  # a file written since may change again without a new time
DISTRIBUTION = "dart-vlm"
MIXED = (
    "the installed distribution {0} brings a Python package `{1}`, as this project does, and imports may mix the two: "
    "use an environment without it, or pip uninstall it and install this project again"
)
MEMORY_IS_SHORT = ("out of memory", "can't allocate memory")


class UserError(Exception):
    """Bad input: the message names the input, what was expected and what to do."""


class Unfinished(UserError):
    """A run that went on to its end and left something out: exit code 1. The message says what, and how to make up."""


class Parser(argparse.ArgumentParser):
    """Raises UserError for bad arguments, so that they too end in one line."""

    def error(self, message: str) -> NoReturn:
        """Raises UserError with the message."""
        raise UserError(f"{message} (--help lists the options)")


def one_line(error: BaseException) -> str:
    """The error's message without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def exits_cleanly(main: Callable[P, R]) -> Callable[P, R]:
    """Decorate a command's `main`: one line instead of a traceback.

    Bad input, a full disk and too little memory print `error: ...` and exit with code 2, a run that left something out
    with code 1; Ctrl-C exits with code 130.
    """

    @functools.wraps(main)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        code = USAGE_ERROR
        try:
            return main(*args, **kwargs)
        except Unfinished as error:
            message, code = one_line(error), UNFINISHED
        except (UserError, ValueError, OSError, MemoryError) as error:
            message = one_line(error)
        except RuntimeError as error:
            message = one_line(error)
            if not any(words in message for words in MEMORY_IS_SHORT):
                raise
        except KeyboardInterrupt:
            print("interrupted; run the same command again to resume", file=sys.stderr)
            raise SystemExit(INTERRUPTED) from None
        print(f"error: {message}", file=sys.stderr)
        raise SystemExit(code)

    return wrapper


def needed(package: str, extra: str) -> ModuleType:
    """Import an optional package. Raises UserError naming the extra that brings it."""
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"this needs the package {package.split('.')[0]}: {installed_by(extra)}") from error


def installed_by(extra: str) -> str:
    """How to install what an extra of pyproject.toml brings. There is no package on PyPI."""
    return f"pip install '.[{extra}]' in this project's folder"


def others_with(package: str) -> list[str]:
    """The installed distributions, but for this one, that bring a top-level package of that name."""
    brings = (each for each in metadata.distributions() if package in (each.read_text("top_level.txt") or "").split())
    return sorted({each.name for each in brings} - {DISTRIBUTION})


def plug_ins(group: str) -> dict[str, Any]:
    """name -> what it names, for every installed entry point of a group.

    Raises UserError for one that cannot be imported, with the other distribution that has replaced its files, if any.
    """
    found = {}
    for point in entry_points(group=group):
        try:
            found[point.name] = point.load()
        except (ImportError, AttributeError) as error:
            package = point.value.partition(".")[0]
            others = others_with(package)
            hint = f"; {MIXED.format(', '.join(others), package)}" if others else ""
            raise UserError(f"the plug-in {point.name} cannot be imported ({one_line(error)}){hint}") from error
    return found


def dtype_of(name: str) -> Any:
    """torch's dtype of one of the names DTYPES. Raises ValueError listing them."""
    if name not in DTYPES:
        raise ValueError(f"dtype {name!r} is unknown; known: {', '.join(DTYPES)}")
    return getattr(importlib.import_module("torch"), name)


def device_of(name: str | None) -> Any:
    """torch's device of that name; None: CUDA where there is one. Raises ValueError for one that is not there."""
    torch = importlib.import_module("torch")
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.zeros(1, device=device).item()
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(
            f"--device {name} is not here: expected cpu, cuda, cuda:1 and so on (this machine has "
            f"{torch.cuda.device_count()} CUDA devices); {one_line(error)}"
        ) from None
    return device


def is_hub_name(path: str) -> bool:
    """Whether `path`, no folder here, can be `owner/name` of a hub repository rather than a mistyped folder."""
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not os.path.isdir(os.path.dirname(path))


def add_revision(parser: argparse.ArgumentParser, flag: str = "--revision") -> None:
    """Add --revision, or a flag of another name: `checkpoint_folder` takes it."""
    parser.add_argument(
        flag, help="commit, tag or branch of a hub repository (default: its main branch as it is today)"
    )


def checkpoint_folder(path: str, revision: str | None = None, flag: str = "--revision") -> str:
    """The folder `path`, else the downloaded snapshot of the hub repository of that name.

    revision: a commit, tag or branch of that repository, given as `flag`; None: its main branch. Raises
    FileNotFoundError when it is neither, or there is no such revision; UserError for a folder with a revision, which
    has none.
    """
    local = os.path.expanduser(path)
    if os.path.isdir(local):
        if revision is not None:
            raise UserError(f"{flag} {revision} is for a hub name, and {path} is a folder: leave it out")
        return local
    if not is_hub_name(path):
        raise FileNotFoundError(f"model path {path} does not exist: expected a checkpoint's folder or a hub name")
    from huggingface_hub import snapshot_download

    try:
        return snapshot_download(path, revision=revision, ignore_patterns=list(UNREAD))
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"model path {path}{f' (revision {revision})' if revision else ''} does not exist here and cannot be "
            f"fetched from the hub ({type(error).__name__})"
        ) from error


def fingerprint(folder: str | Path | None) -> str | None:
    """A hash of a checkpoint's weights and configs, their names, sizes and bytes; None for what is no folder.

    That of a large checkpoint is remembered by the files' sizes and times, in the user's cache folder.
    """
    if folder is None or not os.path.isdir(folder):
        return None
    root = Path(folder)
    stats = {p: p.stat() for p in sorted({path for pattern in WEIGHTS for path in root.rglob(pattern)})}
    newest = max((stat.st_mtime for stat in stats.values()), default=0.0)
    large = sum(stat.st_size for stat in stats.values()) > LARGE_BYTES
    if not large or time.time() - newest < SETTLED_SECONDS:
        return _digest(root, stats)
    known = [(str(path.resolve()), stat.st_size, stat.st_mtime_ns) for path, stat in stats.items()]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "dart-vlm" / "checkpoints"
    entry = cache / hashlib.sha256(repr((str(root.resolve()), known)).encode()).hexdigest()
    with suppress(OSError):
        return entry.read_text(encoding="ascii")
    digest = _digest(root, stats)
    with suppress(OSError):  # a folder that cannot be written: hashed again the next time
        write_text(entry, digest)
    return digest


def _digest(root: Path, stats: Mapping[Path, os.stat_result]) -> str:
    digest = hashlib.sha256()
    for path, stat in stats.items():
        digest.update(f"{path.relative_to(root)} {stat.st_size} ".encode())
        with path.open("rb") as file:
            for start in (*range(0, stat.st_size, BLOCK_BYTES), max(0, stat.st_size - BLOCK_BYTES)):
                file.seek(start)
                digest.update(file.read(BLOCK_BYTES))
    return digest.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path`, which takes its place at the end of the `with` block; gone after an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if error.filename is None:  # a full disk does not say where
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace `path` in one step."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, value: Any) -> None:
    """Replace `path` in one step."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_json(path: str | Path) -> Any:
    """A JSON file's value. Raises FileNotFoundError for a missing file, ValueError for a broken one; both name it."""
    if not os.path.isfile(path):
        raise FileNotFoundError(f"{path} does not exist")
    with open(path, encoding="utf-8") as file:
        try:
            text = file.read()
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{path} is not valid JSON ({error}): get the file again") from error
    if SURROGATE.decode() in text.lower() and not is_text(value):
        raise ValueError(f"{path} has half a character (a lone \\ud800 to \\udfff): get the file again")
    return value


def is_text(value: Any) -> bool:
    """Whether all strings in a value read from JSON are Unicode text: JSON can name half a character, files cannot."""
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def provenance() -> dict[str, Any]:
    """Command, commit, hardware, versions and time of this process."""
    import torch

    root = Path(__file__).resolve().parents[1]
    hardware = f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    versions = {"python": platform.python_version()}
    for package in ("torch", "transformers", "triton"):
        if util.find_spec(package) is not None:
            versions[package] = metadata.version(package)
    if torch.cuda.is_available():
        hardware += f", {torch.cuda.get_device_name()}"
        driver = _said_by("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader").split()
        versions["driver"] = driver[0] if driver else "unknown"
    return {
        "command": shlex.join([*_started(), *sys.argv[1:]]),
        "commit": _commit(root) or "unknown",
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "hardware": hardware,
        "versions": versions,
    }


def _commit(root: Path) -> str:
    """Of the checkout at `root`; nothing for an installed copy, which may lie in a checkout of something else."""
    return _said_by("git", "-C", str(root), "rev-parse", "--short", "HEAD") if (root / ".git").exists() else ""


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _said_by(*command: str) -> str:
    """What a program prints; nothing where it is not installed or fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (FileNotFoundError, subprocess.CalledProcessError):
        return ""


def _started() -> list[str]:
    """How this process was started: `python -m MODULE`, `python SCRIPT.py`, or an installed command by its name."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    if spec is not None:
        return ["python", "-m", spec.name.removesuffix(".__main__")]
    script = Path(sys.argv[0])
    return [script.name] if script.suffix == "" else ["python", script.name]


def in_turns(runs: Sequence[Callable[[], Sample]], repeats: int, warm_up: int) -> list[list[Sample]]:
    """[run][round] what each of `runs` returned in each of `repeats` rounds; the first `warm_up` ones are not kept.

    Each run is called once per round, in this order and in the opposite one by turns: what drifts (heat, other
    processes) meets all of them alike.
    """
    samples: list[list[Sample]] = [[] for _ in runs]
    order = list(range(len(runs)))
    for number in range(warm_up + repeats):
        gc.collect()
        for k in order if number % 2 == 0 else reversed(order):
            sample = runs[k]()
            if number >= warm_up:
                samples[k].append(sample)
    return samples
