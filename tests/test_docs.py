"""README.md, CONTRIBUTING.md and docs/*.md: every command could be run as it stands, every link leads somewhere.

The commands themselves are run by the tests of what they start; here each is read: files, modules, make targets, extras
and the variables of scripts exist, and each option is one that `--help` names.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
import itertools
import json
import os
import re
import runpy
import shlex
import sys
import tomllib
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from dart import strategies

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.glob("*.md"))]
LINKED = [*PAGES, *sorted((DOCS / "results").glob("*.md"))]
PLACEHOLDER = re.compile(r"(\.\.\.)|^[A-Z]+$|^<.*>$")
STARTS = ("python", ".venv", "bash", "make", "pip", "accelerate", "torchrun", "cd")
ASSIGNED = re.compile(r"[A-Z_]+=")
OTHERS = {
    "pytest",
    "lmms_eval",
    "vllm.entrypoints.openai.api_server",
}  # modules that are not this project's: their options are not read
ANYWHERE = {"CUDA_VISIBLE_DEVICES", "DS_BUILD_OPS"}  # variables that other programs read
MADE_LATER = ("playground/data/eval",)
TRAINING = re.compile(r"scripts/v1_[56]/(pretrain|finetune\w*)\.sh")
FIRST_SCREENS = 60  # lines
LINE = 120


@dataclass(frozen=True)
class Command:
    """words: without the variables that stand before them; folder: where it is typed."""

    words: list[str]
    variables: list[str]
    folder: Path


def blocks(text: str) -> Iterator[str]:
    yield from re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    without = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    yield from (span for span in re.findall(r"`([^`]+)`", without) if re.match(r"([A-Z_]+=\S+ )*(\S+)", span))


def commands(text: str) -> Iterator[Command]:
    """All commands of a page: of its blocks, and of code in its sentences that begins like one."""
    for block in blocks(text):
        folder = ROOT
        for line in block.replace("\\\n", " ").splitlines():
            try:
                words = shlex.split(line, comments=True)
            except ValueError:  # code that is no command
                continue
            for separator, group in itertools.groupby(words, lambda word: word in ("&&", "|", ";")):
                own = list(group)
                variables = list(itertools.takewhile(ASSIGNED.match, own))
                own = own[len(variables) :]
                while own and own[0] == "...":
                    own = own[1:]
                if separator or not own or not own[0].startswith(STARTS) or len(own) == 1:
                    continue
                if own[0] == "cd":
                    folder = ROOT if own[1] == "dart" else folder / own[1]  # the clone's own folder
                    continue
                yield Command(own, [each.partition("=")[0] for each in variables], folder)


@functools.cache
def help_of(module: str, *before: str) -> str:
    """What the module prints for --help, after these words."""
    out, given = io.StringIO(), sys.argv
    sys.argv = [module, *before, "--help"]
    try:
        with contextlib.redirect_stdout(out), warnings.catch_warnings(), pytest.raises(SystemExit) as ended:
            warnings.simplefilter("ignore", RuntimeWarning)  # a module that was imported before it is run
            runpy.run_module(module, run_name="__main__")
    finally:
        sys.argv = given
    assert not ended.value.code, (module, ended.value.code)
    return out.getvalue()


def unknown_options(words: list[str], known: str) -> list[str]:
    named = {word.partition("=")[0] for word in words if word.startswith("--") and word != "--"}
    return [f"{name} is no option" for name in sorted(named) if not re.search(re.escape(name) + r"(?![\w-])", known)]


def in_module(words: list[str]) -> list[str]:
    module, rest = words[0], words[1:]
    try:
        there = importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        there = False
    if module in OTHERS:
        return []
    if not there:
        return [f"there is no module {module}"]
    before: tuple[str, ...] = ()
    if module == "dart" and rest[:1] == ["serve"]:
        before = ("serve",)
    if "--protocol" in rest:
        before = ("--protocol", rest[rest.index("--protocol") + 1])
    options = [word for word in rest if word.startswith("--")]
    known = help_of(module, *before) if options else ""
    if module == "llava.eval.suite" and "--protocol" not in rest:
        known += help_of("llava.eval.run")  # it hands the loop's own options on
    return unknown_options(rest, known) if options else []


def of_script(command: Command) -> list[str]:
    name = command.words[1]
    path = command.folder / name
    if not path.is_file():
        return [f"there is no file {name}"]
    read = path.read_text() + "".join(lib.read_text() for lib in (ROOT / "scripts" / "lib").glob("*.sh"))
    unread = [name for name in command.variables if name not in ANYWHERE and not re.search(rf"\b{name}\b", read)]
    wrong = [f"{path.name} reads no {name}" for name in unread]
    if TRAINING.fullmatch(os.path.relpath(path, ROOT)):
        read = read + help_of("llava.train.train")
    return wrong + unknown_options(command.words, read)


@pytest.mark.parametrize(
    "words", ["dart", "dart serve", "dart.compare", "llava.eval.suite", "llava.eval.run", "llava.eval.run_llava"]
)
def test_help_says_what_every_option_does(words):
    lines = [line for line in help_of(*words.split()).split("options:", 1)[1].splitlines() if line.strip()]
    option = re.compile(r"  (-\w, )?--[\w-]+( \S+)*$")  # and nothing after it
    followed = zip(lines, [*lines[1:], ""], strict=True)
    assert [line for line, after in followed if option.match(line) and not after.startswith(" " * 8)] == []


def extras() -> set[str]:
    return set(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"])


def problems(command: Command) -> list[str]:
    """What is wrong with a command, as far as can be seen without running it."""
    words = [word for word in command.words if not PLACEHOLDER.search(word)]
    start, wrong = words[0], []
    if start == "bash" and len(words) > 1:
        wrong = of_script(Command(words, command.variables, command.folder))
    elif start == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        wrong = [f"make has no {w}" for w in words[1:] if "=" not in w and w not in targets]
    elif start == "pip":
        named = [name for word in words for group in re.findall(r"\[([\w,-]+)\]", word) for name in group.split(",")]
        wrong = [f"there is no extra {name}" for name in named if name not in extras()]
    elif "-m" in words:
        wrong = in_module(words[words.index("-m") + 1 :])
    elif len(words) > 1 and words[1].endswith(".py") and not (command.folder / words[1]).is_file():
        wrong = [f"there is no file {words[1]}"]
    paths = [word for word in words if word.startswith("playground/") and not word.startswith(MADE_LATER)]
    return wrong + [f"{path} does not exist" for path in paths if not (ROOT / path).exists()]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_could_be_run(page):
    wrong = {shlex.join(c.words): found for c in commands(page.read_text()) if (found := problems(c))}
    assert wrong == {}


def test_the_commands_are_found():
    found = [shlex.join(command.words) for page in PAGES for command in commands(page.read_text())]
    assert len(found) > 60
    assert "bash eval_scripts/lmms_eval.sh True 0.889" in found and "python -m dev.methods" in found


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("python -m dart --model X --kep 3", "--kep is no option"),
        ("python -m dart serve --overlay x.png", "--overlay is no option"),
        ("python -m dart.comparison", "no module dart.comparison"),
        ("python -m llava.eval.suite --protocol vtc --ratios 2", "--ratios is no option"),
        ("python -m dart --image playground/data/mini/none.jpg", "none.jpg does not exist"),
        ("cd Qwen2-VL && bash scripts/v1_5/eval/pope.sh", "no file scripts/v1_5/eval/pope.sh"),
        ("CHECKPOINT=x bash scripts/v1_5/eval/pope.sh 0.5", "reads no CHECKPOINT"),
        ("bash scripts/v1_5/finetune.sh --strategie dart", "--strategie is no option"),
        ("accelerate launch -m llava.eval.run --tusk pope", "--tusk is no option"),
        ("make tests", "make has no tests"),
        ("pip install '.[evals]'", "no extra evals"),
        ("python scripts/demonstrate.py", "no file scripts/demonstrate.py"),
    ],
)
def test_a_wrong_command_is_found(text, words):
    (command,) = commands(f"```bash\n{text}\n```")
    assert any(words in each for each in problems(command)), problems(command)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def links(page: Path) -> Iterator[tuple[str, Path, str]]:
    """(as written, the file, the anchor in it or "") of all links that do not leave the repository."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for written in re.findall(r"\]\((?!\w+:)([^)\s]+)\)", text):
        target, _, anchor = written.partition("#")
        yield written, (page.parent / target if target else page), anchor


@pytest.mark.parametrize("page", LINKED, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for written, target, anchor in links(page):
        assert target.exists(), written
        assert not anchor or target.suffix != ".md" or anchor in anchors(target), written


def flat(entry: Any) -> Iterator[str]:
    """The pages of a part of mkdocs' nav: a page, {title: part} or a list of parts."""
    if isinstance(entry, str):
        yield entry
        return
    for part in entry.values() if isinstance(entry, dict) else entry:
        yield from flat(part)


def test_the_map_and_the_site_know_all_pages():
    pages = {page.name for page in DOCS.glob("*.md")}
    linked = {target.name for _, target, _ in links(DOCS / "index.md")}
    assert pages - {"index.md"} <= linked, "docs/index.md is the map: add a line"
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert set(flat(nav)) == pages | {"readme.md", "contributing.md"}


def test_lines_of_text_stay_short():
    whole = ("|", "![", "  title", "  author")  # tables, pictures, BibTeX
    for page in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(DOCS / f"{n}.md" for n in ("index", "evidence"))):
        text = re.sub(r"<!-- results:.*?<!-- /results", "", page.read_text(), flags=re.DOTALL)
        assert [line for line in text.splitlines() if len(line) > LINE and not line.startswith(whole)] == [], page


def test_the_readme_shows_both_scripts_and_the_picture_first():
    first = "\n".join((ROOT / "README.md").read_text().splitlines()[:FIRST_SCREENS])
    for wanted in (
        "bash scripts/v1_5/eval/textvqa.sh 0.778 128",
        "cd Qwen2-VL && bash eval_scripts/lmms_eval.sh True 0.889",
        "](docs/kept.png)",
    ):
        assert wanted in first
    assert (DOCS / "kept.png").stat().st_size < 300_000


def test_the_readme_counts_what_there_is():
    readme, families = (ROOT / "README.md").read_text(), (DOCS / "families.md").read_text()
    exact, total = re.findall(r"^(\d+) of (\d+) model types are exact", families, re.MULTILINE)[0]
    assert f"{exact} of the {total} image-text-to-text model types" in readme
    table = readme.split("## Methods", 1)[1].split("## ", 1)[0]
    assert set(re.findall(r"`(\w+)`", table.split("\n\nPapers", 1)[0])) == set(strategies.available())
    named = set(re.findall(r"`(\w+)`", readme.split("## Models", 1)[1].split("## ", 1)[0]))
    assert named <= set(re.findall(r"^\| ([\w-]+) \|", families, re.MULTILINE))


def test_the_readme_has_the_measured_times():
    readme = (ROOT / "README.md").read_text()
    rows = json.loads((DOCS / "results" / "latency-cpu-llava-next-7b.json").read_text())["rows"]
    unpruned, pruned = (next(row for row in rows if row["setting"] == name) for name in ("unpruned", "dart 320"))
    seconds = [f"{row['ms']['ttft']['median'] / 1000:.1f} s" for row in (unpruned, pruned)]
    bytes_ = [f"{row['kv_bytes'] / 1e6:.0f} MB" for row in (unpruned, pruned)]
    for figures in (seconds, bytes_):
        assert f"| {figures[0]} | {figures[1]} | {pruned['visual_after']} of {pruned['visual_before']} |" in readme


OWN = "dart|llava|scripts|dev|tests|benchmarks|requirements|playground"
OF_LLAVA = {"playground/data/eval"}  # a user's folder
FILES = re.compile(rf"`((?:{OWN}|lmms-eval|vllm|Qwen2-VL|Qwen2_5-VL)/[\w/.*-]+)`")
NAMES = re.compile(r"`@?((?:dart|llava|dev|benchmarks)(?:\.\w+)+)[`(]")


def unknown_name(name: str) -> bool:
    """Is this dotted name no module of this project, nothing in one, and no group of its entry points?"""
    groups = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"]
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        module = ROOT.joinpath(*parts[:count])
        if module.is_dir() or module.with_suffix(".py").is_file():
            found: Any = importlib.import_module(".".join(parts[:count]))
            break
    for part in parts[count:]:
        if not hasattr(found, part):
            return name not in groups
        found = getattr(found, part)
    return False


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_names_of_this_project_exist(page):
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    named = {name for name in FILES.findall(text) if not PLACEHOLDER.search(Path(name).stem)} - OF_LLAVA
    assert [name for name in sorted(named) if not any(ROOT.glob(name.rstrip("/")))] == []
    assert [name for name in sorted(set(NAMES.findall(text))) if unknown_name(name)] == []


def test_a_wrong_name_is_found():
    assert unknown_name("dart.compiled.compile_layers") and unknown_name("dart.prunes")
    assert not unknown_name("dart.engine.compiled.compile_layers") and not unknown_name("dart.loaders")
