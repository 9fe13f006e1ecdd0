"""docs/tour.ipynb: its cells run in order, and say what the committed outputs say."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
TOUR = ROOT / "docs" / "tour.ipynb"
LARGEST = 100_000  # bytes, pictures included
CELLS = json.loads(TOUR.read_text(encoding="utf-8"))["cells"]


def test_the_cells_run_from_another_folder_of_the_clone(tmp_path: Path) -> None:
    code = "\n\n".join("".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code")
    assert code.count("outputs/tour") == code.count('"--limit", "8"') == 1
    code = code.replace("outputs/tour", str(tmp_path / "out")).replace('"--limit", "8"', '"--limit", "2"')
    (tmp_path / "tour.py").write_text(code)
    own = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(tmp_path / "tour.py")]
    done = subprocess.run(command, cwd=ROOT / "docs", env=os.environ | own, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "report.html").is_file() and "| longest |" in done.stdout
    shown = "".join(line for cell in CELLS for out in cell.get("outputs", []) for line in out.get("text", []))
    assert re.search(r"^78\n78\n266 -> 28 visual tokens, from layer 2 on$", shown, re.MULTILINE)
    counts = re.compile(r"(\d+ -> \d+|\d+ tokens as a mean)")
    assert counts.findall(done.stdout)[: len(counts.findall(shown))] == counts.findall(shown)


def test_what_is_committed_is_small_and_of_no_machine() -> None:
    assert TOUR.stat().st_size < LARGEST
    outputs = [out for cell in CELLS for out in cell.get("outputs", [])]
    assert outputs and not any(out["output_type"] == "error" or out.get("name") == "stderr" for out in outputs)
    assert not re.search(r'"/(tmp|home|root|work)/', TOUR.read_text(encoding="utf-8"))
