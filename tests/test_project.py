"""The project's own promises: the README's commands exist, its table is up to date, sizes stay small."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from dev.results import render
from llava.eval import tasks

ROOT = Path(__file__).resolve().parents[1]
MEBIBYTE = 2**20
DOCUMENTS = ["README.md", "CONTRIBUTING.md", "docs/reproduction.md"]


def tracked() -> list[Path]:
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def total(folder: str) -> int:
    return sum(path.stat().st_size for path in tracked() if path.is_relative_to(ROOT / folder))


@pytest.mark.parametrize("document", DOCUMENTS)
def test_commands_in_the_documents_exist(document):
    text = (ROOT / document).read_text()
    for script in re.findall(r"bash (scripts/[\w./-]+\.sh)", text):
        assert (ROOT / script).is_file(), script
    for module in re.findall(r"python -m ([\w.]+\w)", text):
        assert importlib.util.find_spec(module) is not None, module


def test_linked_files_in_the_documents_exist():
    for document in DOCUMENTS:
        folder = (ROOT / document).parent
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / document).read_text()):
            assert (folder / link).exists(), (document, link)


def extras() -> dict[str, list[Requirement]]:
    tomllib = pytest.importorskip("tomllib", reason="part of Python from 3.11 on")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return {name: [Requirement(r) for r in rows] for name, rows in project["optional-dependencies"].items()}


def test_extras_are_installable_requirements_and_the_ones_that_are_named_exist():
    known = extras()
    assert {"flash", "quant", "lora", "tiny", "dev"} <= set(known)
    assert all(requirement.specifier for rows in known.values() for requirement in rows)
    for place in ["Makefile", *DOCUMENTS, *(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))]:
        for named in re.findall(r"""['"]\.\[([\w,-]+)\]['"]""", (ROOT / place).read_text()):
            assert set(named.split(",")) <= set(known), place


@pytest.mark.parametrize("name", tasks.available())
def test_every_benchmark_has_what_the_checklist_says(name):
    if name == "easy_vqa":
        pytest.skip("converted from its package, for measuring the embedded model")
    for version in ("v1_5", "v1_6"):
        assert (ROOT / "scripts" / version / "eval" / f"{name}.sh").is_file()
    assert len(tasks.get(name).examples(ROOT / "playground" / "data" / "mini")) >= 16


def test_files_stay_small():
    assert [path for path in tracked() if path.stat().st_size > 8 * MEBIBYTE] == []
    assert total("playground/models/llava-tiny") <= 8 * MEBIBYTE
    assert total("playground/data/mini") <= 10 * MEBIBYTE
    assert total("playground") + total("tests/golden") < 40 * MEBIBYTE


def test_readme_tables_are_up_to_date():
    assert render.readme_with_results() == render.README.read_text()


def test_results_say_where_they_come_from():
    for path in sorted((ROOT / "docs" / "results").glob("*.json")):
        results = json.loads(path.read_text())
        assert {"command", "commit", "date", "hardware", "versions"} <= set(results), path


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
        render.rendered("text", "llava-tiny", {})
