"""Settings of one prompt, measured in turns: every round runs each of them once, forwards and backwards by turns."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from transformers.cache_utils import Cache

import dart
from benchmarks import flops
from benchmarks.engines import Engine
from benchmarks.oracle import Oracle, kept_rows
from benchmarks.phases import cache_bytes, host_waits, peak_bytes, run_once
from benchmarks.shapes import Workload
from dart.families import family_of
from dart.report import PruneReport
from dart.utils import Sample, in_turns

UNPRUNED, ORACLE = "unpruned", "oracle"
TIMES = ("vision", "before", "selection", "after", "prefill", "ttft", "decode", "total")
RATIOS = ("prefill", "ttft", "total")
QUARTILES = 4


@dataclass(frozen=True)
class Setting:
    """One row of the table. config: None for the unpruned model; oracle: are the kept positions given?"""

    name: str
    config: dart.DartConfig | None = None
    oracle: bool = False


@dataclass(frozen=True)
class Plan:
    """What all settings share. layer: K; repeats, warm_up: rounds that count, and rounds before them."""

    layer: int
    answer_tokens: int
    repeats: int
    warm_up: int
    engine: Engine


@dataclass
class Prepared:
    """A setting and a prompt. report: what it keeps of the prompt, None for everything."""

    setting: Setting
    work: Workload
    report: PruneReport | None = None
    oracle: Oracle | None = None

    @classmethod
    def of(cls, setting: Setting, work: Workload) -> Prepared:
        if setting.config is None:
            return cls(setting, work)
        rows, report = kept_rows(work, setting.config)
        if not setting.oracle:
            return cls(setting, work, report)
        decoder = family_of(work.model).decoder(work.model)
        return cls(setting, work, report, Oracle(decoder, report.layer, rows, report.tokens_before))

    def timed(self, plan: Plan) -> Callable[[], Sample]:
        return lambda: self.run(plan)[0]

    def run(self, plan: Plan) -> tuple[Sample, Cache]:
        """One answer with this setting's model; see `run_once`."""
        attached: Any = None
        if self.oracle is not None:
            attached = self.oracle.attach()
        elif self.setting.config is not None:
            attached = dart.prune(self.work.model, self.setting.config)
        try:
            return run_once(self.work, plan.layer, plan.answer_tokens, plan.engine)
        finally:
            if attached is not None:
                attached.remove()


def settings_for(strategies: list[str], keeps: list[int | float], layer: int) -> list[Setting]:
    """The unpruned model, every strategy at every budget, and after them DART's tokens given for free."""
    settings = [Setting(UNPRUNED)]
    for keep in keeps:
        settings += [
            Setting(f"{name} {keep}", dart.DartConfig(keep=keep, layer=layer, strategy=name, exact=False))
            for name in strategies
        ]
        settings.append(Setting(f"{ORACLE} {keep}", dart.DartConfig(keep=keep, layer=layer), oracle=True))
    return settings


def summary(values: list[float], digits: int) -> dict[str, float]:
    """Median and interquartile range."""
    quarters = statistics.quantiles(values, n=QUARTILES, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return {"median": round(quarters[1], digits), "iqr": round(quarters[2] - quarters[0], digits)}


def ratio(base: list[Sample], other: list[Sample], phase: str) -> dict[str, float]:
    """How many times faster `other` is than `base`: of the ratios within each round."""
    return summary([b[phase] / max(o[phase], 1e-9) for b, o in zip(base, other, strict=True)], 3)


def measure(work: Workload, settings: list[Setting], plan: Plan) -> list[dict[str, Any]]:
    """One row for each setting, the first of which is the base of the speed-ups."""
    prepared = [Prepared.of(setting, work) for setting in settings]
    samples = in_turns([each.timed(plan) for each in prepared], plan.repeats, plan.warm_up)
    decoder = flops.Decoder.of(work.model.config.get_text_config(decoder=True))
    rows = []
    for each, own in zip(prepared, samples, strict=True):
        row = {"setting": each.setting.name, "batch": work.batch, **_limits(each, decoder, plan.layer)}
        row |= _memory(each, replace(plan, answer_tokens=1))
        row["ms"] = {name: summary([1000 * sample[name] for sample in own], 4) for name in TIMES}
        row["times_faster"] = {name: ratio(samples[0], own, name) for name in RATIOS}
        if each.setting.config is not None and not each.oracle:
            oracle = next(s for p, s in zip(prepared, samples, strict=True) if _is_oracle_of(p, each))
            row["of_oracle"] = ratio(oracle, own, "prefill")
            saved = statistics.median(b["prefill"] - s["prefill"] for b, s in zip(samples[0], own, strict=True))
            if saved > 0:
                row["selection_of_saved"] = round(statistics.median(s["selection"] for s in own) / saved, 5)
        rows.append(row)
    return rows


def _is_oracle_of(oracle: Prepared, other: Prepared) -> bool:
    """Was it given as many tokens as the other one keeps?"""
    budgets = [each.setting.config.keep for each in (oracle, other) if each.setting.config is not None]
    return oracle.oracle is not None and len(budgets) == 2 and budgets[0] == budgets[1]


def _limits(prepared: Prepared, decoder: flops.Decoder, layer: int) -> dict[str, Any]:
    """Tokens, and the shares of the work that are left, by formula; `flops_limit` is the speed-up that they allow."""
    work, report = prepared.work, prepared.report
    whole, before = work.length, work.visual_tokens
    after = before if report is None else report.visual_after[0]
    full = flops.prefill_flops(decoder, [whole] * decoder.layers)
    left = flops.prefill_flops(decoder, flops.lengths(decoder.layers, layer, whole, whole - before + after))
    return {
        "tokens": whole,
        "visual_before": before,
        "visual_after": after,
        "prefill_tflop": round(work.batch * left / 1e12, 4),
        "flops_limit": round(full / left, 3),
        "flops_share_as_published": round(flops.published_ratio(decoder, layer, before, after), 4),
        "visual_kv_share": round(flops.kv_ratio(decoder.layers, layer, before, after), 4),
    }


def _memory(prepared: Prepared, plan: Plan) -> dict[str, int | None]:
    """Bytes of the cache after a prefill, and of everything alive at once in it, in a run of its own; in another one
    how often the host waited for a GPU."""
    caches: list[Cache] = []
    peak = peak_bytes(lambda: caches.append(prepared.run(plan)[1]), prepared.work.model.device)
    waits = host_waits(lambda: prepared.run(plan), prepared.work.model.device)
    return {"kv_bytes": cache_bytes(caches[0]), "peak_bytes": peak, "host_waits": waits}
