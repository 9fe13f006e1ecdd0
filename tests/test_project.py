"""The project's own promises: locks fit, tables are up to date, sizes stay small. Of the documents: test_docs.py."""

from __future__ import annotations

import json
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from dev.results import render, speed
from llava.eval import tasks

ROOT = Path(__file__).resolve().parents[1]
MEBIBYTE = 2**20


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def total(folder: str) -> int:
    return sum(path.stat().st_size for path in tracked() if path.is_relative_to(ROOT / folder))


def project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def extras() -> dict[str, list[Requirement]]:
    return {name: [Requirement(r) for r in rows] for name, rows in project()["optional-dependencies"].items()}


def test_extras_are_installable_requirements_and_the_ones_that_are_named_exist():
    known = extras()
    assert {"flash", "hf", "eval", "plot", "quant", "lora", "tiny", "dev"} <= set(known)
    rows = [row for extra in known.values() for row in extra]
    assert all(row.specifier or (row.name == "dart-vlm" and row.extras <= set(known)) for row in rows)
    for place in [ROOT / "Makefile", *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]:
        for named in re.findall(r"""['"](?:\.|dart-vlm)\[([\w,-]+)\]['"]""", place.read_text()):
            assert set(named.split(",")) <= set(known), place


def asked_for(extra: str) -> list[Requirement]:
    """What `pip install ".[extra]"` asks for, the extras that this one takes in included."""
    rows = extras()[extra]
    inner = [row for own in rows if own.name == "dart-vlm" for name in own.extras for row in asked_for(name)]
    return [Requirement(r) for r in project()["dependencies"]] + [r for r in rows if r.name != "dart-vlm"] + inner


def locked(environment: str) -> dict[str, str]:
    """The versions in a lock file, whose lines are read strictly: a sorted name==version each, no address, no hash."""
    lines = (ROOT / "requirements" / f"{environment}.txt").read_text().splitlines()
    assert lines[0].startswith("# Made by `make lock`")
    pattern = r'([a-z0-9-]+)==([\w.!+]+)(?:; platform_system == "Linux")?'
    pins = [re.fullmatch(pattern, line) for line in lines[1:]]
    assert all(pins), [line for line, pin in zip(lines[1:], pins, strict=True) if not pin]
    versions = {pin[1]: pin[2] for pin in pins if pin}
    assert list(versions) == sorted(versions) and len(versions) == len(pins) and "dart-vlm" not in versions
    return versions


@pytest.mark.parametrize(
    ("environment", "extra"), [("test", "dev"), ("oldest", "dev"), ("lmms-eval", "lmms-eval"), ("train", "train")]
)
def test_locks_have_what_pyproject_asks_for(environment, extra):
    versions = locked(environment)
    for requirement in asked_for(extra):
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement
    pair = f"torch=={versions['torch']} torchvision=={versions['torchvision']}"
    assert f"\nLOCKED_TORCH := {pair}\n" in (ROOT / "Makefile").read_text()


def test_the_lock_of_the_site_has_what_its_extra_asks_for():
    versions = locked("docs")
    assert "torch" not in versions
    for requirement in extras()["docs"]:
        assert requirement.specifier.contains(versions[canonicalize_name(requirement.name)]), requirement


def test_the_oldest_lock_has_the_lower_bounds_themselves():
    """Of what users are asked for; torch and torchvision are the locked pair, and the tests' own tools the newest."""
    versions, tools = locked("oldest"), {row.name for row in extras()["dev"]}
    for requirement in (r for r in asked_for("dev") if r.name not in tools | {"torch", "torchvision"}):
        (bound,) = requirement.specifier
        assert Version(versions[canonicalize_name(requirement.name)]) == Version(bound.version), requirement


@pytest.mark.parametrize("name", tasks.available())
def test_every_benchmark_has_what_the_checklist_says(name, tmp_path):
    if name == "easy_vqa":
        pytest.skip("converted from its package, for measuring the embedded model")
    for version in ("v1_5", "v1_6"):
        assert (ROOT / "scripts" / version / "eval" / f"{name}.sh").is_file()
    made = name == "probe"  # on first use, in whatever folder
    assert len(tasks.get(name).examples(tmp_path if made else ROOT / "playground" / "data" / "mini")) >= 16


def test_files_stay_small():
    assert [path for path in tracked() if path.stat().st_size > 8 * MEBIBYTE] == []
    assert total("playground/models/llava-tiny") <= 8 * MEBIBYTE
    assert total("playground/data/mini") <= 10 * MEBIBYTE
    assert total("playground") + total("tests/golden") < 40 * MEBIBYTE


@pytest.mark.parametrize("page", sorted(render.TABLES), ids=lambda page: page.name)
def test_tables_are_up_to_date(page):
    assert render.with_results(page) == page.read_text()


def test_results_say_where_they_come_from():
    for path in sorted((ROOT / "docs" / "results").glob("*.json")):
        results = json.loads(path.read_text())
        runs = results["shapes"].values() if "shapes" in results else [results]  # runs of several days in one file
        for run in runs:
            assert {"command", "commit", "date", "hardware", "versions"} <= set(run), path


def test_seeds_are_averaged_and_gaps_are_named():
    settings = [{"name": "unpruned", "keep": None}] + [{"name": f"random-64-seed{k}", "keep": 64} for k in range(3)]
    cells = {f"pope/random-64-seed{k}": {"score": score} for k, score in enumerate((1.0, 2.0, 6.0))}
    cells["pope/unpruned"] = {"score": 6.0, "accuracy": 50.0}
    cells["mme/unpruned"] = {"error": "no pictures"}
    results = {"settings": settings, "cells": cells, "checkpoint_sha256": "0", "commit": "c", "date": "d"}
    table = render.accuracy_table(results | {"hardware": "h"})
    assert "| random-64 | 3.0 ±2.2 | - | 50.0 % |" in table
    assert "MME has no score: no pictures" in table and "unpruned: POPE 50.0 %" in table


def test_text_without_markers_is_refused():
    with pytest.raises(ValueError, match="markers"):
        speed.replaced("text", "llava-tiny", str)
