"""Accuracy of the embedded Qwen models through lmms-eval: `python -m dev.results.qwen_tiny` from the root.

Every setting of a model is one run of its eval_scripts/lmms_eval.sh on the offline mini tasks; runs that are finished
are not repeated while the checkpoints are the same. The models are measured side by side, each on its share of the
cores. Writes docs/results/qwen-tiny.json and renders docs/evidence.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from dart.utils import UserError, exits_cleanly, provenance, write_json
from dev.results.qwen_table import SCORES
from dev.results.render import RESULTS_FOLDER, ROOT, render_all
from llava.eval.engine.suite_table import UNPRUNED
from llava.files import fingerprint, read_json

RESULTS, WORK = RESULTS_FOLDER / "qwen-tiny.json", ROOT / "outputs" / "results" / "qwen-tiny"
FOLDERS = {"qwen2_vl": "Qwen2-VL", "qwen2_5_vl": "Qwen2_5-VL"}
RATIOS = ["0.667", "0.778", "0.889"]
PIXELS = "min_pixels=200704,max_pixels=401408"  # the checkpoints' own
TALLY = re.compile(r"DART \(\w+\): ([\d.]+) -> ([\d.]+) visual tokens per sample from layer \d+, ([\d.]+) as a mean")


@dataclass(frozen=True)
class Setting:
    """One row of the table. ratio None: unpruned."""

    name: str
    ratio: str | None = None
    strategy: str | None = None
    seed: int | None = None

    def model_args(self) -> str:
        """What the script does not pass by itself."""
        parts = [PIXELS] + ([f"strategy={self.strategy}"] if self.strategy else [])
        return ",".join(parts + ([f"seed={self.seed}"] if self.seed is not None else []))


def settings_of(seeds: int) -> Iterator[Setting]:
    """Unpruned, then every ratio with DART and the two controls."""
    yield Setting(UNPRUNED)
    for ratio in RATIOS:
        yield Setting(f"dart-{ratio}", ratio, "dart")
        yield from (Setting(f"random-{ratio}-seed{seed}", ratio, "random", seed) for seed in range(seeds))
        yield Setting(f"uniform-{ratio}", ratio, "uniform")


def checkpoint_of(family: str) -> Path:
    return ROOT / "playground" / "models" / f"{family.replace('_vl', '-vl')}-tiny"


def run(family: str, setting: Setting, limit: str, threads: int) -> dict[str, Any]:
    """Figures of every task. Raises UserError when the script fails."""
    out = WORK / fingerprint(str(checkpoint_of(family)))[:12] / setting.name
    environment = {
        "MODEL": str(checkpoint_of(family)),
        "MODEL_ARGS": setting.model_args(),
        "LIMIT": limit,
        "OUTPUT": str(out),
        "OMP_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": os.environ.get("CUDA_VISIBLE_DEVICES", ""),
        "MAIN_PORT": str(29500 + list(FOLDERS).index(family)),
    }
    script = ROOT / FOLDERS[family] / "eval_scripts" / "lmms_eval.sh"
    words = ["bash", str(script), "True", setting.ratio] if setting.ratio else ["bash", str(script), "False"]
    done = subprocess.run(words, env=os.environ | environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise UserError(f"{family}, {setting.name}: {done.stderr.strip().splitlines()[-1]}")
    newest = max(out.rglob("*_results.json"), key=lambda path: path.stat().st_mtime)
    return figures_of(read_json(newest), done.stdout)


def figures_of(report: dict[str, Any], printed: str) -> dict[str, Any]:
    """lmms-eval's report and what the run printed -> tasks (task -> metrics), questions, and the visual tokens."""
    tasks = {
        task: {name.removesuffix(",none"): v for name, v in metrics.items() if _is_metric(name, v)}
        for task, metrics in report["results"].items()
    }
    figures: dict[str, Any] = {
        "tasks": tasks,
        "questions": {task: counts["effective"] for task, counts in report["n-samples"].items()},
    }
    if found := TALLY.search(printed):
        before, after, mean = map(float, found.groups())
        figures |= {"tokens": [before, after], "mean_tokens": mean}
    return figures


def lmms_eval_version(interpreter: str) -> str:
    """The release that answers; its own reports name the commit of the folder they were made in. Raises UserError."""
    code = "import importlib.metadata; print(importlib.metadata.version('lmms-eval'))"
    try:
        return subprocess.run([interpreter, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        raise UserError(f"{interpreter} has no lmms-eval; run make setup-lmms, or name another with PYTHON") from error


def _is_metric(name: str, value: Any) -> bool:
    return name.endswith(",none") and "stderr" not in name and isinstance(value, (int, float))


def measure(families: list[str], settings: list[Setting], results: dict[str, Any], limit: str) -> None:
    """Run what is missing, the families side by side, and write the results after every run."""
    lock, threads = Lock(), max(1, (os.cpu_count() or 1) // len(families))

    def all_of(family: str) -> None:
        for setting in settings:
            key = f"{family}/{setting.name}"
            if key in results["runs"]:
                continue
            figures = run(family, setting, limit, threads)
            with lock:
                results["runs"][key] = figures
                write_json(RESULTS, results | provenance())
                scores = {task: figures["tasks"][task][metric] for task, (_, metric, _) in SCORES.items()}
                print(key, json.dumps(scores), flush=True)

    with ThreadPoolExecutor(len(families)) as pool:
        list(pool.map(all_of, families))


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--families", nargs="+", choices=FOLDERS, default=list(FOLDERS))
    parser.add_argument("--seeds", type=int, default=1, help="runs of the random strategy")
    parser.add_argument("--limit", default="all", help="questions of each task")
    parser.add_argument("--overwrite", action="store_true", help="throw the results of earlier checkpoints away")
    args = parser.parse_args(argv)
    for family in args.families:
        if not checkpoint_of(family).is_dir():
            raise UserError(f"{checkpoint_of(family)} is not there: it is the embedded model")
    if args.overwrite:
        RESULTS.unlink(missing_ok=True)
    interpreter = os.environ.get("PYTHON", str(ROOT / ".venv-lmms" / "bin" / "python"))
    facts = {
        "lmms_eval": lmms_eval_version(interpreter),
        "checkpoints_sha256": {family: fingerprint(str(checkpoint_of(family))) for family in FOLDERS},
        "limit": args.limit,
    }
    known = read_json(RESULTS) if RESULTS.is_file() else {}
    if known and any(known[name] != value for name, value in facts.items()):
        raise UserError(f"{RESULTS} holds results of other checkpoints or another --limit; start with --overwrite")
    settings = list(settings_of(args.seeds))
    named = {s["name"]: s for s in known.get("settings", [])} | {s.name: asdict(s) for s in settings}
    in_blocks = sorted(named.values(), key=lambda setting: setting["ratio"] or "")  # also where seeds were added later
    results = {"runs": {}} | known | facts | {"settings": in_blocks}
    measure(args.families, settings, results, args.limit)
    render_all()


if __name__ == "__main__":
    main()
