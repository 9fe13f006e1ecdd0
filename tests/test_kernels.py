"""The kernels against the torch code, through Triton's interpreter, or on the GPU where there is one."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys

import numpy as np
import pytest
import test_pruner
import torch
from conftest import prompt, tiny_llava
from torch import nn
from transformers.models.gemma.modeling_gemma import GemmaRMSNorm
from transformers.models.llama.modeling_llama import LlamaRMSNorm

import dart
from dart import kernels
from dart.engine.layers import gather_inputs
from dart.engine.layout import PADDING
from dart.engine.selection import Kept, plan_batch, select_rows

pytest.importorskip("triton")
from benchmarks import builds  # noqa: E402
from benchmarks import kernels as bench  # noqa: E402
from dart.kernels import launch  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
HEADS, HEAD, WIDTH = 3, 8, 40


def inputs(size: int, tokens: int, dtype: torch.dtype = torch.float32, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(size, tokens, WIDTH, generator=generator)
    keys = torch.randn(size, HEADS, tokens, HEAD, generator=generator)
    return hidden.to(DEVICE, dtype), keys.to(DEVICE, dtype)


def spans_of(*rows: str) -> np.ndarray:
    """A letter a block of ten tokens: `.` is text, a, b, c are visual spans."""
    table = {".": 0, "a": 1, "b": 2, "c": 3}
    return np.array([np.repeat([table[letter] for letter in row], 10) for row in rows])


def both(use, hidden, norm, keys, spans, valid, config) -> tuple[Kept, Kept]:
    results = []
    for mode in ("torch", "triton"):
        use(mode)
        results.append(select_rows(hidden, norm, keys, spans, valid, config))
    return results[0], results[1]


def assert_same(one: Kept, other: Kept) -> None:
    assert one.widths == other.widths
    assert other.rows.dtype == torch.long and torch.equal(one.rows, other.rows)


LAYOUTS = {
    "one picture": (".aaaaaaaa..",),
    "two pictures, text between": (".aaa.bbbbb..",),
    "a tile's tokens do not lie side by side": (".ababababab..",),
    "text first and last alone": ("aaaaaa",),
    "a batch": (".aaaaaaaa..", ".aaaaa.bbb.", "...aaaaaa..", ".aa......bb"),
    "a row without pictures": (".aaaaaaaa..", "...........", "aaaaaaaaaa."),
}
SETTINGS = {
    "tokens": {"keep": 24},
    "ratio": {"reduction_ratio": 0.7},
    "joint": {"keep": 24, "scope": "joint"},
    "exact": {"keep": 29, "exact": True},
    "pivots alone": {"keep": 5},
    "no image pivots": {"keep": 16, "image_pivots": 0},
    "no text pivots": {"keep": 16, "text_pivots": 0},
    "many pivots": {"keep": 40, "image_pivots": 9, "text_pivots": 8},
    "nearly all": {"keep": 70},
}


@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_positions_as_torch(use, layout, settings):
    spans, config = spans_of(*LAYOUTS[layout]), dart.DartConfig(**SETTINGS[settings])
    hidden, keys = inputs(*spans.shape)
    one, other = both(use, hidden, None, keys, spans, None, config)
    if one is None:
        assert other is None
    else:
        assert_same(one, other)
        assert max(one.widths) < spans.shape[1] or layout == "a row without pictures" or min(one.widths) < 110


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(4))
def test_dtypes_and_the_final_norm(use, dtype, seed):
    """The norm that the kernel applies has the model's own roundings: half precision chooses alike, too."""
    spans = spans_of(".aaaaaaaaaaaaaaaaaaaa.", "..bbbbbbbbbbbbbbb.aaaa")
    hidden, keys = inputs(*spans.shape, dtype, seed)
    norm = LlamaRMSNorm(WIDTH, eps=1e-5).to(DEVICE, dtype)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    config = dart.DartConfig(keep=32)
    assert_same(*both(use, hidden * 3, norm, keys, spans, None, config))
    plain = select_rows(hidden * 3, None, keys, spans, None, config)
    assert not torch.equal(plain.rows, select_rows(hidden * 3, norm, keys, spans, None, config).rows)


def test_scores_with_the_norm_inside_are_those_behind_it(use):
    use("triton")
    spans = spans_of(".aaaaaaaaaaaa.")
    hidden, keys = inputs(*spans.shape, torch.bfloat16)
    norm = LlamaRMSNorm(WIDTH).to(DEVICE, torch.bfloat16)
    nn.init.uniform_(norm.weight, 0.5, 1.5)
    config = dart.DartConfig(keep=16)
    batch = plan_batch(hidden, norm, keys, spans, None, config)
    selection = launch.Selection.of(batch, config)
    state, norms, _ = selection._norms(keys)
    pivots = selection._pivots(norms, state)
    inside = selection._scores(hidden, norm, pivots, state)
    behind = selection._scores(norm(hidden), None, pivots, state)
    torch.testing.assert_close(norms[0], keys[0].float().abs().sum((0, 2)))
    assert (inside - behind).abs().max() < 64  # units of a float32's last bit: 2^-17 of a score


@pytest.mark.parametrize("make", [GemmaRMSNorm, nn.LayerNorm])
def test_another_norm_is_called_itself(use, make):
    spans = spans_of(".aaaaaaaaaaaa.")
    hidden, keys = inputs(*spans.shape)
    norm = make(WIDTH).to(DEVICE)
    nn.init.uniform_(norm.weight, -0.5, 1.5)
    assert_same(*both(use, hidden, norm, keys, spans, None, dart.DartConfig(keep=24)))


def test_equals_go_to_the_lower_position(use):
    """Small whole numbers, all sums of which are exact: four different tokens over and over, with three key norms."""
    hidden, keys = (each.mul(4).round() for each in inputs(1, 110))
    hidden[0, 10:90] = hidden[0, 10:14].repeat(20, 1)
    keys[0, :, 10:90] = keys[0, :, 10:13].repeat(1, 27, 1)[:, :80]
    one, other = both(use, hidden, None, keys, spans_of(".aaaaaaaa.."), None, dart.DartConfig(keep=24))
    assert_same(one, other)
    strongest = 10 + int(keys[0, :, 10:13].abs().sum((0, 2)).argmax())
    pivots = [strongest + 3 * k for k in range(4)]  # of 26 or 27 equals, the first four
    texts = [90 + p for p in keys[0, :, 90:].abs().sum((0, 2)).sort(descending=True, stable=True).indices[:4].tolist()]
    unit = nn.functional.normalize(hidden[0].double(), dim=-1).cpu()
    left = [p for p in range(10, 90) if p not in pivots]
    for pivot in pivots + texts:
        first = sorted(left, key=lambda p: (round(float(unit[pivot] @ unit[p]), 9), p))[:3]
        left = [p for p in left if p not in first]
    assert sorted(set(range(10, 90)) - set(left)) == [p for p in one.rows[0].tolist() if 10 <= p < 90]


def test_padding_and_ragged_rows(use):
    spans = spans_of("..aaaaaaaa..", ".....aaaaa..", "..aaaa.aaaa.")
    valid = np.ones(spans.shape, dtype=bool)
    valid[1, :33] = False
    hidden, keys = inputs(*spans.shape)
    one, other = both(use, hidden, None, keys, spans, valid, dart.DartConfig(keep=0.4))
    assert_same(one, other)
    assert len(set(other.widths)) > 1 and (other.rows[:, 0] == PADDING).any()


@pytest.mark.parametrize("small", [{"RANK_LIMIT": 16}, {"ROUND_BLOCK": 8, "PIVOT_BLOCK": 16, "RANK_BLOCK": 16}])
def test_more_tokens_than_a_block(use, monkeypatch, small):
    for name, value in small.items():
        monkeypatch.setattr(launch, name, value)
    spans = spans_of(".aaaaaaaa.bb..", ".aaaaaaaaa....")
    hidden, keys = inputs(*spans.shape)
    assert_same(*both(use, hidden, None, keys, spans, None, dart.DartConfig(keep=40)))


def test_select_and_its_forced_pivots(use):
    hidden, keys = inputs(2, 110)
    mask = torch.zeros(2, 110, dtype=torch.bool, device=DEVICE)
    mask[0, 10:90] = mask[1, 20:75] = True
    config = dart.DartConfig(keep=0.3)
    use("torch")
    plain = dart.select(hidden, keys, mask, config)
    forced = dart.select(hidden[0], keys[0], mask[0], config, pivots=[20, 99])
    use("triton")
    rows = dart.select(hidden, keys, mask, config)
    assert [row.tolist() for row in rows] == [row.tolist() for row in plain]
    assert [row.numel() for row in rows] == [config.num_kept(80), config.num_kept(55)]
    assert torch.equal(dart.select(hidden[0], keys[0], mask[0], config), plain[0])
    assert torch.equal(dart.select(hidden[0], keys[0], mask[0], config, pivots=[20, 99]), forced)


def test_a_plan_can_be_run_again(use):
    """Nothing of one run is left for the next: what a CUDA graph repeats."""
    use("triton")
    spans, config = spans_of(".aaaaaaaa..", "..aaaa.bbb."), dart.DartConfig(keep=24)
    (hidden, keys), (others, other_keys) = inputs(*spans.shape), inputs(*spans.shape, seed=1)
    selection = launch.Selection.of(plan_batch(hidden, None, keys, spans, None, config), config)
    first = selection.run(hidden, None, keys)
    second = selection.run(others, None, other_keys)
    assert not torch.equal(first, second) and torch.equal(first, selection.run(hidden, None, keys))


def test_keys_and_hidden_states_that_are_views(use):
    spans, config = spans_of(".aaaaaaaa..", "..aaaa.bbb."), dart.DartConfig(keep=24)
    hidden, keys = inputs(*spans.shape)
    wide = torch.randn(2, HEADS, 150, HEAD, device=DEVICE)
    wide[:, :, 20:130] = keys
    flipped = hidden.transpose(1, 2).contiguous().transpose(1, 2)
    one = both(use, hidden, None, keys, spans, None, config)[0]
    assert_same(one, both(use, flipped, None, wide[:, :, 20:130], spans, None, config)[1])


@pytest.mark.parametrize("angles", [(1,), (2,), (3, 2), None])
@pytest.mark.parametrize("places", [(1,), (2,), (4, 2), None])
def test_gathering(angles, places):
    hidden = torch.randn(2, 30, 20, device=DEVICE)[..., :16]
    rows = torch.tensor([[PADDING, 0, 3, 4, 29], [1, 2, 5, 20, 28]], device=DEVICE)
    turned = (
        None
        if angles is None
        else (torch.randn(*angles, 30, 6, device=DEVICE), torch.rand(*angles, 30, 6, device=DEVICE))
    )
    positions = None if places is None else torch.randint(0, 99, (*places, 30), device=DEVICE)
    wanted = gather_inputs(rows, hidden, turned, positions)
    given = gather_inputs(rows, hidden, turned, positions, "triton")
    assert torch.equal(given[0], wanted[0])
    if angles is None:
        assert given[1] is None
    else:
        assert all(torch.equal(a, b) for a, b in zip(given[1], wanted[1], strict=True))
    assert given[2] is None if places is None else torch.equal(given[2], wanted[2])


def test_gradients_still_flow():
    hidden = torch.randn(1, 30, 16, device=DEVICE, requires_grad=True)
    out, _, _ = gather_inputs(torch.tensor([[2, 5]], device=DEVICE), hidden, None, None, "triton")
    out.sum().backward()
    assert hidden.grad[0].sum(-1).nonzero().flatten().tolist() == [2, 5]


@pytest.mark.skipif(DEVICE.type == "cuda", reason="those tests' tensors are on the CPU")
@pytest.mark.parametrize("layer", [0, 2])
def test_whole_models(use, layer):
    """The pruner's own tests, with the kernels: the written-out decoder, ragged rows, several pictures, gradients."""
    use("triton")
    test_pruner.test_prefill_and_decoding_follow_the_written_out_decoder("sdpa", layer)
    test_pruner.test_rows_of_one_length_that_keep_different_numbers("sdpa")
    test_pruner.test_a_quota_for_each_picture(tiny_llava())
    test_pruner.test_gradients_flow_through_a_pruned_prefill()


def test_the_kernels_are_what_ran(use, monkeypatch):
    """A switch that did nothing would pass the tests above."""
    seen = []
    run, gathered = launch.Selection.run, launch.gather
    monkeypatch.setattr(launch.Selection, "run", lambda *args: seen.append("selection") or run(*args))
    monkeypatch.setattr(launch, "gather", lambda *args: seen.append("gather") or gathered(*args))
    model = tiny_llava().to(DEVICE)
    ids, pixels = (each.to(DEVICE) for each in prompt(5, 7))
    for mode, expected in (("torch", []), ("triton", ["selection", "gather"])):
        use(mode)
        with dart.prune(model, test_pruner.KEEP), torch.no_grad():
            model(input_ids=ids, pixel_values=pixels)
        assert seen == expected
    use("triton")
    config = dart.DartConfig(keep=16, pivot_order="original")
    with dart.prune(model, config), torch.no_grad():  # the host's order: torch selects, the kernel gathers
        model(input_ids=ids, pixel_values=pixels)
    assert seen[2:] == ["gather"]


def test_modes(monkeypatch, caplog):
    cuda, cpu = torch.device("cuda"), torch.device("cpu")
    monkeypatch.setenv(kernels.VARIABLE, "yes")
    with pytest.raises(ValueError, match="DART_KERNELS must be one of auto, triton, torch, got 'yes'"):
        dart.prune(tiny_llava())
    monkeypatch.delenv(kernels.VARIABLE)
    assert kernels.chosen() == "torch" and not kernels.active(cuda, "torch")
    assert kernels.active(cuda, "auto") and not kernels.active(cpu, "auto")
    monkeypatch.delenv(kernels.INTERPRETER, raising=False)
    with pytest.raises(ValueError, match="on cpu needs TRITON_INTERPRET=1"):
        kernels.active(cpu, "triton")
    monkeypatch.setattr(kernels, "installed", lambda: False)
    with pytest.raises(ValueError, match="pip install triton"):
        kernels.active(cuda, "triton")
    kernels._say_once.cache_clear()
    with caplog.at_level(logging.WARNING):
        assert [kernels.active(cuda, "auto"), kernels.active(cuda, "auto")] == [False, False]
    assert len(caplog.records) == 1 and "triton is not installed" in caplog.text


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_they_compile_for_a_hopper_gpu(dtype, tmp_path):
    """Without one: Triton brings its compiler. Half precision multiplies on the tensor cores, nothing spills."""
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "benchmarks.builds", "--dtypes", dtype]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    built = {row["kernel"]: row for row in json.loads(done.stdout.splitlines()[-1])["rows"]}
    selecting = ["norms", "pivots", "scores", "ranks", "rounds", "gather"]
    assert list(built) == [*selecting, "lengths", "mean", "first", "among", "remember", "rows"]
    assert all(each["shared_bytes"] <= 96 * 1024 and each["spilled_bytes"] == 0 for each in built.values())
    for name in ("scores", "among", "remember"):
        assert (built[name]["tensor_core_products"] > 0) == (dtype != "float32")
    assert built["rounds"]["barriers"] > 0


@pytest.mark.skipif(DEVICE.type == "cuda", reason="here the interpreter is off")
def test_the_benchmarks_commands(capsys, monkeypatch):
    def refused(main, *arguments):
        with pytest.raises(SystemExit, match="2"):
            main(list(arguments))
        return capsys.readouterr().err

    assert "TRITON_INTERPRET unset" in refused(builds.main)
    assert "bfloat16, got int8" in refused(builds.main, "--dtypes", "int8")
    assert "got huge" in refused(bench.main, "--shapes", "huge")
    assert "got fastv" in refused(bench.main, "--strategies", "fastv")
    bench.main(["--device", "cpu", "--shapes", "tiny", "--batch-sizes", "2", "--repeats", "1"])
    rows = json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]
    assert [row["strategy"] for row in rows] == ["dart", "spread"]
    for row in rows:
        assert row["same_tokens"] == 1.0 and row["graph_us"] is None and row["floor_us"] > 0
    assert kernels.VARIABLE not in os.environ
    monkeypatch.delenv(kernels.INTERPRETER)
    assert "needs TRITON_INTERPRET=1" in refused(bench.main, "--device", "cpu", "--shapes", "tiny")
