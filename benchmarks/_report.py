"""How a benchmark ends: what its result says about the run, the file written whole or not at all, or one line."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import transformers

from dart import kernels

USAGE_ERROR = 2


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _driver() -> str:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=False).stdout.split()
    except FileNotFoundError:
        lines = []
    return lines[0] if lines else "unknown"


def _module() -> str:
    """The module that was started with `python -m`, else the script's name."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec is not None else Path(sys.argv[0]).name


def provenance() -> dict[str, Any]:
    """Command, commit, hardware, versions and time of this process."""
    root = Path(__file__).resolve().parents[2]
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=root, capture_output=True, text=True, check=False)
    hardware = f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    versions = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    if kernels.installed():
        versions["triton"] = metadata.version("triton")
    if torch.cuda.is_available():
        hardware += f", {torch.cuda.get_device_name()}"
        versions["driver"] = _driver()
    return {
        "command": " ".join(["python", "-m", _module(), *sys.argv[1:]]),
        "commit": git.stdout.strip() or "unknown",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "hardware": hardware,
        "versions": versions,
    }


def write_json(path: Path, value: Any) -> None:
    """Replace `path` in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    os.replace(temporary, path)


def publish(result: dict[str, Any], out: str | None) -> None:
    """Write the result to the file `out`, if one is named, and print it as the last line."""
    if out:
        write_json(Path(out), result)
    print(json.dumps(result))


def refuse(error: Exception) -> int:
    """Say in one line why there is no result; the command's exit code."""
    print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
    return USAGE_ERROR
