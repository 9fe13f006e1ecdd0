"""The project's own promises: the README's commands exist, its table is up to date, sizes stay small."""

from __future__ import annotations

import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest

from scripts.results import render

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


def test_make_targets_in_the_readme_exist():
    makefile = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_linked_files_in_the_documents_exist():
    for document in DOCUMENTS:
        folder = (ROOT / document).parent
        for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / document).read_text()):
            assert (folder / link).exists(), (document, link)


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
    cells = {f"pope/random-64-seed{k}": {"score": score, "accuracy": 50.0} for k, score in enumerate((1.0, 2.0, 6.0))}
    results = {"cells": cells, "checkpoint_sha256": "0", "commit": "c", "date": "d", "hardware": "h"}
    row = "| random-64 | not run | 3.0 (1.0 to 6.0, 3 seeds) | 50.0 (50.0 to 50.0, 3 seeds) | not run |"
    assert row in render.accuracy_table(results)


def test_text_without_markers_is_refused():
    with pytest.raises(ValueError, match="markers"):
        render.rendered("text", "llava-tiny", {})
