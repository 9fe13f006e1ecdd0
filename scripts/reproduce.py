"""The paper's tables, ours beside them: `bash scripts/reproduce.sh table1|table2|qwen2vl|latency [--dry-run]`.

Checks first what a run needs and says everything that is missing at once. Then it runs the suite (table1, table2), the
lmms-eval script (qwen2vl) or the latency benchmark, which all go on where they were stopped, and prints each figure
beside the published one, the difference, and whether the published one lies in the 95 % interval of ours. Everything is
in one JSON file, without paths of this machine. CKPT and DATA name the checkpoint and the benchmarks; without CKPT the
embedded model answers the embedded questions, to try the way: its figures are not comparable. Exit
code 1: a figure is missing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig

from dart.stats import wilson
from dart.utils import (
    UNFINISHED,
    Parser,
    Unfinished,
    UserError,
    exits_cleanly,
    fingerprint,
    one_line,
    provenance,
    write_json,
)
from llava.eval import suite
from llava.eval.engine.suite_table import UNPRUNED, markdown
from llava.files import EMBEDDED_DATA, EMBEDDED_MODEL, read_json

ROOT = Path(__file__).resolve().parents[1]
PUBLISHED = ROOT / "scripts" / "lib" / "published.json"
KINDS = ("table1", "table2", "qwen2vl", "latency")
QWEN_SCRIPT, LMMS_PYTHON = "Qwen2-VL/eval_scripts/lmms_eval.sh", ROOT / ".venv-lmms" / "bin" / "python"
GIB = 2**30
NEEDED_DISK, NEEDED_GPU = 4 * GIB, 17 * GIB  # answers and tables; 7B weights in half precision and their activations
OF_1000, POINTS = ("ocrbench",), ("mme", "ocrbench")  # scores that are no percentage
# lmms-eval's task -> the metrics whose sum is its published score, and the factor to the scale of the table.
LMMS_SCORES: dict[str, tuple[tuple[str, ...], int]] = {
    "gqa": (("exact_match",), 100),
    "mmbench_en_dev": (("gpt_eval_score",), 1),
    "mmbench_cn_dev": (("gpt_eval_score",), 1),
    "mme": (("mme_perception_score", "mme_cognition_score"), 1),
    "pope": (("pope_f1_score",), 100),
    "scienceqa_img": (("exact_match",), 100),
    "textvqa_val": (("exact_match",), 100),
    "mme_mini": (("mme_perception_score",), 1),
    "pope_mini": (("pope_f1_score",), 100),
    "textvqa_mini": (("exact_match",), 100),
}
# The embedded model, its questions, how many of each task, and its pixels as scripts/lib/lmms.sh has them.
EMBEDDED_QWEN = EMBEDDED_MODEL.with_name("qwen2-vl-tiny")
EMBEDDED_TASKS = {"mme": "mme_mini", "pope": "pope_mini", "textvqa_val": "textvqa_mini"}
EMBEDDED_RUN = {"LIMIT": "60", "MODEL_ARGS": "min_pixels=200704,max_pixels=401408", "HF_HUB_OFFLINE": "1"}
EMBEDDED = {
    "benchmarks": ["textvqa", "pope", "mme"],
    "latency": ["--layers", "4", "--images", "1", "--repeats", "3", "--model", "decoder-135m"],
}


def missing(kind: str, checkpoint: str, data: Path, benchmarks: Sequence[str], embedded: bool) -> list[str]:
    """What stands in the way of a run, a line each."""
    found = []
    if not embedded:
        try:
            AutoConfig.from_pretrained(checkpoint)
        except Exception as error:  # not there, no network, not known to transformers: all of them are said
            found.append(f"checkpoint {checkpoint}: {one_line(error)[:200]}")
        if not torch.cuda.is_available():
            found.append("no GPU: a 7B model answers a benchmark's questions in days on a CPU")
        elif (memory := torch.cuda.get_device_properties(0).total_memory) < NEEDED_GPU:
            found.append(f"GPU 0 has {memory / GIB:.0f} GiB, a 7B model in half precision needs {NEEDED_GPU / GIB:.0f}")
    if kind in ("table1", "table2"):
        for name in benchmarks:
            try:
                task, split = suite.part_of(name)
                task.examples(data, split)
            except (UserError, FileNotFoundError) as error:
                found.append(f"{name}: {one_line(error)[:300]}")
    if kind == "qwen2vl" and not LMMS_PYTHON.is_file():
        found.append("lmms-eval's environment: make setup-lmms")
    if kind == "qwen2vl" and not embedded and not os.environ.get("OPENAI_API_KEY"):
        found.append("OPENAI_API_KEY: of MMBench's judge, for answers without a letter; lmms-eval guesses without it")
    if (free := shutil.disk_usage(ROOT).free) < NEEDED_DISK:
        found.append(f"{free / GIB:.1f} GiB of disk are free, a run needs {NEEDED_DISK / GIB:.0f}")
    return found


def run_tables(table: dict[str, Any], checkpoint: str, data: Path, names: list[str], out: Path) -> Any:
    """The cells of the suite: "benchmark/row" -> figures, rows by their published names."""
    keeps = [row for row in table["rows"] if row != UNPRUNED]
    words = ["--ckpt", checkpoint, "--data", str(data), "--benchmarks", ",".join(names), "--keep", ",".join(keeps)]
    try:
        suite.main([*words, "--strategies", "dart", "--pivot-orders", "original", "--out", str(out)])
    except SystemExit as ended:
        if ended.code != UNFINISHED:  # else the table says what has no score
            raise
    return {key.replace("/dart-original-", "/"): cell for key, cell in read_json(out)["cells"].items()}


def run_lmms(table: dict[str, Any], given: str | None, work: Path) -> dict[str, Any]:
    """The cells of lmms-eval's runs, one for each row of the table: "task/row" -> figures, tasks by published names.

    given: the checkpoint; None: the embedded model on the mini tasks. Runs whose results lie in `work` are read again.
    """
    tasks = {name: name for name in table["benchmarks"]} if given else EMBEDDED_TASKS
    model = given or str(EMBEDDED_QWEN)
    folder = work / (fingerprint(model) or "hub")[:12]
    wanted = {"MODEL": model, "TASKS": ",".join(tasks.values()), **({} if given else EMBEDDED_RUN)}
    environment = {**os.environ, **wanted, "OUTPUT": str(folder.absolute()), "PYTHON": str(LMMS_PYTHON)}
    cells: dict[str, Any] = {}
    for row in table["rows"]:
        words = ["bash", QWEN_SCRIPT, *(["False"] if row == UNPRUNED else ["True", row])]
        made = folder / Path(model).name / (row if row == UNPRUNED else f"dart-{row}")
        there = any(made.rglob("*_results.json"))
        if not there and subprocess.run(words, cwd=ROOT, env=environment).returncode:
            raise UserError(f"{' '.join(words)} failed; the same command goes on from here")
        report = read_json(max(made.rglob("*_results.json"), key=lambda path: path.stat().st_mtime))
        cells |= {f"{name}/{row}": lmms_cell(report, task) for name, task in tasks.items()}
    return cells


def lmms_cell(report: dict[str, Any], task: str) -> dict[str, Any]:
    """A task's figures in lmms-eval's report: `score` and `samples`, or `error`."""
    metrics, factor = LMMS_SCORES[task]
    values = [report["results"].get(task, {}).get(f"{metric},none") for metric in metrics]
    if not all(isinstance(value, (int, float)) for value in values):
        return {"error": f"lmms-eval's report has no {' and '.join(metrics)} of {task}"}
    return {"score": round(factor * sum(values), 2), "samples": report["n-samples"][task]["effective"]}


def compared(table: dict[str, Any], cells: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each figure that is published or ours."""
    rows = []
    for name, values in table["rows"].items():
        for benchmark, published in zip(table["benchmarks"], values, strict=True):
            cell = cells.get(f"{benchmark}/{name}")
            if cell is None:
                continue
            row = {"tokens": name, "benchmark": benchmark, "published": published}
            if "score" not in cell:
                rows.append({**row, "error": cell.get("error", "no score")})
                continue
            ours = cell["score"]
            row |= {"ours": ours, "difference": round(ours - published, 2)}
            samples = cell.get("samples")
            if samples and benchmark not in POINTS:
                low, high = (100 * each for each in wilson(ours / 100 * samples, samples))
                row |= {"low": round(low, 1), "high": round(high, 1), "within": low <= published <= high}
            rows.append(row)
    return rows


def text_of(rows: list[dict[str, Any]]) -> str:
    heads = ["tokens", "benchmark", "published", "ours", "difference", "95 % interval of ours", "published within"]
    body = []
    for row in rows:
        interval = f"{row['low']} to {row['high']}" if "low" in row else "-"
        within = {True: "yes", False: "no"}.get(row.get("within"), "-")
        ours = [str(row["ours"]), f"{row['difference']:+g}"] if "ours" in row else [f"not run: {row['error']}", "-"]
        body.append([row["tokens"], row["benchmark"], str(row["published"]), *ours, interval, within])
    return "\n".join(markdown(heads, body))


def measure_latency(checkpoint: str | None, out: Path) -> list[dict[str, Any]]:
    """Of the benchmark `benchmarks.latency`: a checkpoint's own times, or those of a small shape."""
    words = ["--checkpoint", checkpoint, "--keep", "320"] if checkpoint else EMBEDDED["latency"]
    made = out.with_name(f"{out.stem}-latency.json")
    command = [sys.executable, "-m", "benchmarks.latency", *words, "--out", str(made)]
    if subprocess.run(command, cwd=ROOT).returncode:
        raise UserError(f"{' '.join(command[1:])} failed")
    return [row for row in read_json(made)["rows"] if row["setting"].startswith("dart")]


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS, help="what to reproduce")
    parser.add_argument("--dry-run", action="store_true", help="say what would run and what is missing, and end")
    parser.add_argument("--out", type=Path, help="the JSON file (default: outputs/reproduce/KIND.json)")
    args = parser.parse_args(argv)
    published = read_json(PUBLISHED)
    table, given = published[args.kind], os.environ.get("CKPT")
    checkpoint, data = given or str(EMBEDDED_MODEL), Path(os.environ.get("DATA") or EMBEDDED_DATA)
    names = table["benchmarks"] if given else EMBEDDED["benchmarks"]
    print(f"{table['title']} ({published['source']})")
    if not given:
        print(
            f"CKPT is not set: the embedded tiny model tries the way; the paper's figures are of {table['checkpoint']}"
        )
    wrong = missing(args.kind, checkpoint, data, names, not given)
    for line in wrong:
        print(f"missing: {line}")
    if args.dry_run or wrong:
        asked = names if args.kind.startswith("table") else table["benchmarks"]
        if args.kind == "qwen2vl" and not given:
            asked = list(EMBEDDED_TASKS.values())
        print(f"would run: {args.kind}, {', '.join(asked)}; {', '.join(table['rows'])}")
        if wrong and not args.dry_run:
            raise UserError(f"{len(wrong)} thing(s) are missing, nothing was run")
        return
    out = args.out or Path("outputs", "reproduce", f"{args.kind}{'' if given else '-embedded'}.json")
    name = Path(checkpoint if given or args.kind != "qwen2vl" else EMBEDDED_QWEN).name
    result: dict[str, Any] = {**provenance(), "kind": args.kind, "checkpoint": name, "embedded": not given}
    if args.kind == "qwen2vl":
        rows = compared(table, run_lmms(table, given, out.with_name(f"{out.stem}-lmms")))
    elif args.kind == "latency":
        rows = []
        for row in measure_latency(given, out):
            for name, value in zip(table["benchmarks"], table["rows"]["320"], strict=True):
                ours = row["times_faster"][name]["median"]
                kept = row["setting"].split()[-1]
                rows.append(
                    {
                        "tokens": kept,
                        "benchmark": name,
                        "published": value,
                        "ours": ours,
                        "difference": round(ours - value, 3),
                    }
                )
    else:
        cells = run_tables(table, checkpoint, data, list(names), out.with_name(f"{out.stem}-suite.json"))
        rows = compared(table, cells)
    print(text_of(rows))
    write_json(out, {**result, "rows": rows})
    print(f"send this file: {out}")
    if lost := [f"{row['benchmark']} at {row['tokens']}" for row in rows if "error" in row]:
        raise Unfinished(f"{len(lost)} of {len(rows)} figures are missing: {', '.join(lost)}")


if __name__ == "__main__":
    main()
