"""What every command shares."""

from __future__ import annotations

import errno
import subprocess
import sys

import pytest

from dart import utils
from dart.utils import (
    Unfinished,
    UserError,
    checkpoint_folder,
    device_of,
    dtype_of,
    exits_cleanly,
    is_hub_name,
    write_json,
)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (UserError("no\n  such   thing"), 2, "error: no such thing\n"),
        (ValueError("bad"), 2, "error: bad\n"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "error: [Errno 28] No space left on device\n"),
        (Unfinished("two are missing"), 1, "error: two are missing\n"),
        (RuntimeError("CUDA out of memory. Tried"), 2, "error: CUDA out of memory. Tried\n"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again to resume\n"),
    ],
)
def test_a_users_mistake_is_one_line(error, code, said, capsys):
    @exits_cleanly
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        main()
    assert (stop.value.code, capsys.readouterr().err) == (code, said)


def test_a_mistake_of_the_program_is_not_hidden():
    @exits_cleanly
    def main():
        raise RuntimeError("shapes differ")

    with pytest.raises(RuntimeError, match="shapes differ"):
        main()


def test_a_json_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "new" / "a.json"
    write_json(path, {"é": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert path.read_text() == '{\n  "é": 1\n}\n' and [each.name for each in path.parent.iterdir()] == ["a.json"]


def test_hub_names_and_folders_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    assert is_hub_name("owner/name")
    assert not any(is_hub_name(path) for path in ("name", "a/b/c", "./name", "/name", "~/name", "models/typo"))
    assert checkpoint_folder("models") == "models"
    with pytest.raises(FileNotFoundError, match="models/typo does not exist: expected a checkpoint's folder"):
        checkpoint_folder("models/typo")


def test_devices_and_dtypes_that_do_not_exist_are_named():
    assert str(device_of("cpu")) == "cpu" and str(dtype_of("bfloat16")) == "torch.bfloat16"
    for make, name in ((device_of, "gpu0"), (device_of, "cuda:99"), (device_of, "meta"), (dtype_of, "int8")):
        with pytest.raises(ValueError, match=name):
            make(name)


def test_nothing_large_is_imported_for_it():
    code = "import runpy, sys; runpy.run_path(sys.argv[1]); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, utils.__file__], check=False).returncode == 0
