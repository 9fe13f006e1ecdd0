"""`python -m benchmarks.latency` and `.scaling`: what they measure and what they refuse."""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image

import dart
from benchmarks import checkpoints, latency, scaling
from benchmarks.engines import Engine
from benchmarks.latency_report import limits_text, to_text
from benchmarks.measure import ratio, summary
from benchmarks.oracle import Oracle, kept_rows
from benchmarks.phases import cache_bytes, run_once
from benchmarks.shapes import SHAPES, build, workload
from dart.utils import in_turns

CPU = torch.device("cpu")
ROOT = Path(__file__).resolve().parents[1]
KEEP, LAYER = 32, 2
KEPT = 36  # 4 image pivots and 8 times 4 tokens
QUICK = ["--keep", str(KEEP), "--repeats", "1", "--warm-up", "1", "--answer-tokens", "2"]


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def work(request):
    shape = SHAPES["tiny"]
    return workload(shape, build(shape, CPU, torch.float32, request.param), batch=2)


def last_line(capsys) -> dict:
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.mark.parametrize("engine", ["eager", "static"])
def test_the_oracle_computes_what_the_pruned_model_computes(work, engine):
    config = dart.DartConfig(keep=KEEP, layer=LAYER)
    rows, report = kept_rows(work, config)
    made = Engine.of(engine, work.model)
    decoder = work.model.model.language_model

    def answer(attached=None) -> tuple[torch.Tensor, object]:
        cache = made.cache(work, 4)
        outputs = []
        with contextlib.closing(_Removed(attached)), torch.no_grad():
            outputs.append(work.model(**work.inputs, past_key_values=cache, logits_to_keep=1).logits)
            for token in (5, 6):
                ids = torch.full((work.batch, 1), token)
                outputs.append(work.model(input_ids=ids, past_key_values=cache).logits)
        return torch.cat(outputs, 1), cache

    wanted, cache = answer(dart.prune(work.model, config))
    oracle = Oracle(decoder, report.layer, rows, report.tokens_before)
    given, given_cache = answer(oracle.attach())
    torch.testing.assert_close(given, wanted, atol=1e-5, rtol=0)
    again, _ = answer(oracle.attach())
    torch.testing.assert_close(again, wanted, atol=1e-5, rtol=0)
    assert cache_bytes(given_cache) == cache_bytes(cache)
    assert (answer()[0] - wanted).abs().max() > 1e-3


class _Removed:
    """Takes what is attached off on `close`."""

    def __init__(self, attached):
        self.close = attached.remove if attached is not None else lambda: None


def test_phases_add_up_and_the_first_ones_are_the_decoders(work):
    engine = Engine.of("eager", work.model)
    with dart.prune(work.model, dart.DartConfig(keep=KEEP, layer=LAYER)):
        seconds, cache = run_once(work, LAYER, 4, engine)
    assert seconds["prefill"] == pytest.approx(sum(seconds[name] for name in ("before", "selection", "after")))
    assert seconds["ttft"] == pytest.approx(seconds["vision"] + seconds["prefill"])
    assert seconds["total"] == pytest.approx(seconds["ttft"] + 3 * seconds["decode"])
    assert min(seconds.values()) > 0
    assert cache.get_seq_length(0) == work.length + 3
    assert cache.layers[LAYER].keys.shape[2] == work.length - work.visual_tokens + KEPT + 3


def test_rounds_go_forwards_and_backwards():
    called = []
    runs = [lambda name=name: called.append(name) or {"name": name} for name in "abc"]
    samples = in_turns(runs, repeats=3, warm_up=1)
    assert "".join(called) == "abccbaabccba"
    assert [[s["name"] for s in own] for own in samples] == [["a"] * 3, ["b"] * 3, ["c"] * 3]


def test_ratios_are_within_rounds():
    base = [{"prefill": p} for p in (1.0, 2.0, 100.0)]
    other = [{"prefill": p} for p in (0.5, 0.5, 50.0)]
    assert ratio(base, other, "prefill") == {"median": 2.0, "iqr": 1.0}
    assert summary([3.0], 1) == {"median": 3.0, "iqr": 0.0}


def test_every_row_of_the_table(capsys, tmp_path):
    out, plot = tmp_path / "latency.json", tmp_path / "figures" / "pareto.png"
    extra = ["--batch-sizes", "1,2", "--out", str(out), "--plot", str(plot)]
    latency.main(QUICK + extra)
    result = last_line(capsys)
    assert result == json.loads(out.read_text())
    names = ["unpruned", f"dart {KEEP}", f"oracle {KEEP}"]
    assert [(row["setting"], row["batch"]) for row in result["rows"]] == [(n, b) for b in (1, 2) for n in names]
    base, pruned, oracle = result["rows"][:3]
    assert (base["visual_after"], pruned["visual_after"]) == (256, KEPT)
    # Two of four layers keep all: [K, V] x 2 heads x 16 x 4 bytes of 326 or 106 tokens.
    assert base["kv_bytes"] == 4 * 326 * 2 * 2 * 16 * 4
    assert pruned["kv_bytes"] == oracle["kv_bytes"] == 2 * (326 + 106) * 2 * 2 * 16 * 4
    assert result["rows"][4]["kv_bytes"] == 2 * pruned["kv_bytes"]
    assert 0 < pruned["peak_bytes"] < base["peak_bytes"]
    assert base["times_faster"]["prefill"] == {"median": 1.0, "iqr": 0.0}
    assert {"of_oracle"} & set(pruned) and "of_oracle" not in oracle
    assert {"command", "commit", "date", "hardware", "versions", "rates"} <= set(result)
    with Image.open(plot) as image:
        colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20)}
    assert {(0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E), (0x2C, 0xA0, 0x2C)} <= colours
    assert f"oracle {KEEP}" in to_text(result["rows"])
    assert "256 -> 36 visual tokens" in limits_text(result) and "57.0 %" in limits_text(result)


def test_an_original_checkpoint(capsys):
    path = ROOT / "playground" / "models" / "llava-tiny"
    latency.main(["--checkpoint", str(path), *QUICK, "--strategies", "uniform"])
    result = last_line(capsys)
    assert result["weights"] == "the checkpoint's"
    assert [row["visual_after"] for row in result["rows"]] == [576, KEPT, KEPT]


def test_a_checkpoint_of_transformers(tmp_path):
    shape = SHAPES["tiny"]
    build(shape, CPU, torch.float32, "sdpa").save_pretrained(tmp_path)
    model = checkpoints.load(str(tmp_path), CPU, torch.float32, "sdpa")
    made = checkpoints.prompt(model, 2, images=2)
    assert made.visual_tokens == 2 * 64 and made.length == made.visual_tokens + 70
    assert len({tuple(row) for row in made.inputs["input_ids"].tolist()}) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--keep", "3000"], "a budget of 3000 drops none of 256 visual tokens"),
        (["--strategies", "drat"], "--strategies must be of cdpruner, "),
        (["--attn", "flash"], "--attn must be of sdpa, eager, flash_attention_2, got flash"),
        (["--dtype", "int8"], "--dtype must be of"),
        (["--layer", "4"], "--layer must be below the model's 4 layers, got 4"),
        (["--layers", "9"], "--layers must be between 3 and 4, got 9"),
        (["--engine", "graphs"], "the model is on cpu: use compiled"),
        (["--compile-layers", "--engine", "static"], "--compile-layers goes with --engine eager"),
        (["--plot", "x.svg"], "--plot must name a .png file, got x.svg"),
        (["--checkpoint", "no/such/folder"], "no/such/folder"),
        (["--device", "cuda"], "device cuda is not here"),
        (["--device", "gpu0"], "device gpu0 is not here"),
    ],
)
def test_bad_input_is_one_line(arguments, message, capsys):
    if "cuda" in arguments and torch.cuda.is_available():
        pytest.skip("this machine has CUDA")
    with pytest.raises(SystemExit, match="2"):
        latency.main(QUICK[2:] + arguments)
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ") and message in error


def test_selection_of_many_spans_is_linear(monkeypatch, capsys, tmp_path):
    """Rows that are read, not seconds: with spans each looks at its own rows alone."""
    monkeypatch.setattr(scaling, "WIDTH", 64)
    read = []
    import dart.strategies.dart as method

    plain = method.similarities

    def counted(pivots, states, rows):
        read.append(rows.stop - rows.start)
        return plain(pivots, states, rows)

    monkeypatch.setattr(method, "similarities", counted)
    out, plot = tmp_path / "s.json", tmp_path / "s.png"
    scaling.main(["--tokens", "2048,8192", "--repeats", "1", "--out", str(out), "--plot", str(plot)])
    result = last_line(capsys)
    assert plot.stat().st_size > 0 and result == json.loads(out.read_text())
    assert [(row["scope"], row["visual"]) for row in result["rows"]] == [
        (scope, visual) for scope in ("joint", "span") for visual in (2048, 8192)
    ]
    spans = [n for n in read if n == scaling.SPAN]
    runs = len(read) - len(spans)  # of the joint pools, as many of either size
    assert len(spans) == runs // 2 * (2 + 8) and sorted(set(read)) == [1024, 2048, 8192]
    assert result["rows"][1]["kept"] == dart.DartConfig(keep=0.111).num_kept(8192)


def test_line_through_points():
    rows = [{"visual": 1000 * k, "ms": 2.0 + 3.0 * k} for k in range(1, 5)]
    assert scaling.line_through(rows) == {"us_a_token": 3.0, "offset_ms": 2.0, "r2": 1.0}
    with pytest.raises(SystemExit, match="2"):
        scaling.main(["--tokens", "1000"])


def test_a_chart_without_matplotlib_is_refused_before_anything_is_measured(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr(latency, "build", lambda *_: pytest.fail("a model was built"))
    with pytest.raises(SystemExit, match="2"):
        latency.main(["--plot", "x.png"])
    assert capsys.readouterr().err.startswith("error: this needs the package matplotlib: pip install '.[plot]' in ")
