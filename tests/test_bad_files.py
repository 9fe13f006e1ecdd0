"""Benchmark files and question files that are not what they should be: one line and exit code 2, never a traceback."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dart.utils import exits_cleanly
from llava.eval import tasks
from llava.eval.engine.examples import read_question_file
from llava.files import EMBEDDED_DATA

BROKEN = {
    "empty": b"",
    "cut": b'{"a": [1, ',
    "binary": bytes(range(256)) * 4,
    "deep": b"[" * 100_000,
    "number": b"7",
    "null": b"null",
    "text": b'"text"',
    "numbers": b"[1, 2]",
    "nulls": b"[null]",
    "lists": b"[[]]",
    "objects": b"[{}]",
    "object": b'{"a": {"b": []}}',
}
OTHER_VALUES = (None, 7, [], {}, "other")


def rows_of(path: Path) -> Any:
    """A file's value; of JSON lines, the list of rows."""
    text = path.read_text()
    lines = text.splitlines()
    return json.loads(text) if len(lines) == 1 or not lines[0].endswith("}") else [json.loads(line) for line in lines]


def changed(value: Any) -> Iterator[Any]:
    """`value` with the first entry's fields left out and replaced, one after the other, also one level below."""
    if isinstance(value, list) and value:
        yield from ([entry, *value[1:]] for entry in changed(value[0]))
    elif isinstance(value, dict):
        for key in list(value)[:8]:
            yield {name: each for name, each in value.items() if name != key}
            yield from (value | {key: other} for other in OTHER_VALUES)
            if isinstance(value[key], list | dict):
                yield from (value | {key: each} for each in changed(value[key]))


def versions(path: Path) -> Iterator[tuple[str, bytes]]:
    """(what it is, content) of every bad version of a file."""
    yield from BROKEN.items()
    if path.suffix in (".json", ".jsonl"):
        for number, value in enumerate(changed(rows_of(path))):
            by_line = path.suffix == ".jsonl" and isinstance(value, list)
            lines = [json.dumps(row) for row in value] if by_line else [json.dumps(value)]
            yield f"changed {number}", "\n".join(lines).encode()


def outcome(run: Any, capsys: pytest.CaptureFixture[str], name: str) -> int:
    """The exit code of `run` as a command. Fails for an exception, and for an error of more than a line."""
    try:
        exits_cleanly(run)()
    except SystemExit as stop:
        said = capsys.readouterr().err.strip().splitlines()
        assert stop.code == 2 and len(said) == 1 and said[0].startswith("error: "), (name, said)
        return 2
    except Exception as error:
        raise AssertionError(f"{name} ends in a traceback: {error!r}") from error
    return 0


@pytest.mark.parametrize("name", sorted(tasks.available()))
def test_a_bad_benchmark_file_is_one_line(name, tmp_path, capsys, monkeypatch):
    for variable in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
        monkeypatch.delenv(variable, raising=False)
    task = tasks.get(name)
    if not (EMBEDDED_DATA / task.folder).is_dir():
        pytest.skip("made on first use")
    home = shutil.copytree(EMBEDDED_DATA / task.folder, tmp_path / task.folder, copy_function=os.link)
    split = task.split(tmp_path)
    answers = [
        {"question_id": e.question_id, "prompt": e.prompt, "text": "A", **e.fields}
        for e in task.examples(tmp_path, split)
    ]

    def run() -> None:
        task.examples(tmp_path, split)
        task.figures(tmp_path, answers, tmp_path / "upload", split)

    files = [home / each for each in task.splits[split].files]
    files = [p for each in files for p in ([each] if each.is_file() else sorted(each.rglob("*.json"))[:1])]
    assert files
    for path in files:
        good = path.read_bytes()
        for kind, content in list(versions(path)):
            path.unlink()
            path.write_bytes(content)
            code = outcome(run, capsys, f"{path.name}, {kind}")
            assert code or kind not in BROKEN, (path.name, kind)
        path.write_bytes(good)


def test_a_bad_question_file_is_one_line(tmp_path, capsys):
    path = tmp_path / "questions.jsonl"
    path.write_text(json.dumps({"question_id": 1, "image": "a.png", "text": "What?"}))
    for kind, content in list(versions(path)):
        path.write_bytes(content)
        code = outcome(lambda: read_question_file(path, tmp_path), capsys, kind)
        assert code or kind not in BROKEN, kind
