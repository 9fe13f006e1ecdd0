"""The installed package: the wheel's contents, commands from an empty folder, another package of the name `llava`."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from email.parser import Parser
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest

import dart
from dart import utils
from dart.utils import UserError, others_with, plug_ins
from llava import dart_data, files
from llava.eval import suite

ROOT = Path(__file__).resolve().parents[1]
SOURCES = ["dart", "llava", "Qwen2-VL", "Qwen2_5-VL", "lmms-eval", "vllm", "pyproject.toml", "README.md", "LICENSE"]
MODEL = ROOT / "playground" / "models" / "llava-tiny"
SCENE = ROOT / "playground" / "data" / "mini" / "textvqa" / "train_images" / "scene_0001.jpg"
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy, with the setuptools that is installed, without a network."""
    pytest.importorskip("setuptools", minversion="77")
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("dist")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(ROOT / name, source / name)
    subprocess.run([sys.executable, "-c", BUILD, str(out)], cwd=source, check=True, capture_output=True)
    (made,) = out.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run(site: Path, *words: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    """`python words` as a user of the package in `site` starts it."""
    own = {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, words)]
    return subprocess.run(command, cwd=cwd, env=os.environ | own, capture_output=True, text=True)


def test_the_wheel_has_all_that_the_packages_have(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    homes = [ROOT, *(ROOT / name for name in SOURCES[2:6])]
    for home in homes:
        for package in (path.parent for path in home.glob("*/__init__.py") if path.parent.parent == home):
            if home == ROOT and package.name not in ("dart", "llava"):
                continue
            kept = [p for p in package.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
            assert {str(p.relative_to(home)) for p in kept} <= names
    assert {"dart/py.typed", "llava/py.typed", "llava/eval/table/rule.json", "dart/compare/page/report.html"} <= names
    tops = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert tops == {"dart", "llava", "Qwen2VL_DART", "Qwen2_5VL_DART", "lmms_eval_dart", "dart_vllm"}


def test_the_wheel_says_what_it_is(wheel: Path) -> None:
    content = zipfile.ZipFile(wheel)
    (home,) = {name.split("/")[0] for name in content.namelist() if ".dist-info/" in name}
    about = Parser().parsestr(content.read(f"{home}/METADATA").decode())
    assert (about["Name"], about["License-Expression"]) == ("dart-vlm", "Apache-2.0")
    assert "2502.11494" in about["Summary"] and len(about.get_all("Project-URL")) >= 2
    scripts = content.read(f"{home}/entry_points.txt").decode()
    assert "dart = dart.cli:main" in scripts and "dart-compare = dart.compare.command:main" in scripts


def test_the_citation_has_the_version_and_the_paper_of_the_readme() -> None:
    yaml = pytest.importorskip("yaml")
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert cited["version"] == dart.__version__
    paper, entry = cited["preferred-citation"], (ROOT / "README.md").read_text().split("```bibtex")[1]
    names = [f"{each['family-names']}, {each['given-names']}" for each in paper["authors"]]
    assert f"author = {{{' and '.join(names)}}}" in entry and f"year = {{{paper['year']}}}" in entry
    assert re.sub("[“”]", "", paper["title"]) in entry and paper["doi"].startswith("10.18653/")


def test_commands_run_from_an_empty_folder_and_leave_the_package_as_it_is(installed: Path, tmp_path: Path) -> None:
    before = sorted(installed.rglob("*"))
    for module in ("dart", "dart.compare"):
        told = run(installed, "-m", module, "--help", cwd=tmp_path)
        assert told.returncode == 0 and told.stdout.startswith(f"usage: python -m {module}"), told.stderr
    words = ["--model", MODEL, "--image", SCENE, "--question", "What number is on the blue sign?", "--warm-up", "0"]
    asked = run(installed, "-m", "dart", *words, "--json", "out.json", cwd=tmp_path)
    assert asked.returncode == 0 and "with DART:    38" in asked.stdout, asked.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]
    assert utils.read_json(tmp_path / "out.json")["commit"] == "unknown"
    assert sorted(installed.rglob("*")) == before


def test_embedded_files_that_are_not_there_are_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    nowhere = ROOT / "playground" / "nothing"
    for module, name in ((files, "EMBEDDED_MODEL"), (suite, "EMBEDDED_MODEL"), (dart_data, "EMBEDDED_DATA")):
        monkeypatch.setattr(module, name, nowhere)
    with pytest.raises(SystemExit, match="2"):
        suite.main(["--out", str(tmp_path / "out.json")])
    assert "playground/nothing, comes with the repository and not with the inst" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"data set pope: .* give pope=FOLDER"):
        dart_data.open_benchmark("pope", None)
    assert files.or_embedded("anything") == "anything"


def another_llava(site: Path) -> None:
    """What an installed LLaVA leaves in site-packages, as far as this project looks at it."""
    (site / "llava-1.2.2.dist-info").mkdir()
    (site / "llava-1.2.2.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: llava\nVersion: 1.2.2\n")
    (site / "llava-1.2.2.dist-info" / "top_level.txt").write_text("llava\n")


def test_another_llava_beside_this_one_is_said(tmp_path: Path) -> None:
    site = tmp_path / "site"
    site.mkdir()
    another_llava(site)
    told = run(ROOT, "-c", f"import sys; sys.path.append({str(site)!r}); import llava", cwd=tmp_path)
    assert told.returncode == 0
    assert "the installed distribution llava brings a Python package `llava`, as this project does" in told.stderr
    assert run(ROOT, "-c", "import llava", cwd=tmp_path).stderr == ""


def test_another_llava_instead_of_this_one_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    another_llava(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    points = [EntryPoint("llava", "llava.not_in_the_other:load", "dart.loaders")]
    monkeypatch.setattr(utils, "entry_points", lambda group: points)
    assert others_with("llava") == ["llava"]
    with pytest.raises(UserError, match=r"plug-in llava cannot be imported .*not_in_the_other.* distribution llava"):
        plug_ins("dart.loaders")


@pytest.mark.parametrize(
    ("started", "told"), [("/x/bin/dart-compare", "dart-compare --limit 2"), ("a/demo.py", "python demo.py --limit 2")]
)
def test_the_command_of_a_result_is_what_was_typed(started: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["__main__"], "__spec__", None, raising=False)
    monkeypatch.setattr(sys, "argv", [started, "--limit", "2"])
    assert utils.provenance()["command"] == told


def test_an_installed_copy_in_a_checkout_of_something_else_has_no_commit(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    (tmp_path / "site").mkdir()
    assert utils._commit(tmp_path / "site") == ""
