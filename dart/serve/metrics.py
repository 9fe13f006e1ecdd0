"""Counters and histograms in Prometheus' text format."""

from __future__ import annotations

import threading
from collections import Counter
from itertools import accumulate

SECONDS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # upper bounds of the buckets


class Histogram:
    """Prometheus' histogram of durations in seconds."""

    def __init__(self, name: str, about: str):
        self.name, self.about = name, about
        self.counts, self.sum = [0] * (len(SECONDS) + 1), 0.0

    def add(self, value: float) -> None:
        """Count one duration, in seconds."""
        self.counts[sum(value > bound for bound in SECONDS)] += 1
        self.sum += value

    def lines(self) -> list[str]:
        """In Prometheus' text format."""
        totals = list(accumulate(self.counts))
        bounds = [*map(str, SECONDS), "+Inf"]
        buckets = [f'{self.name}_bucket{{le="{bound}"}} {total}' for bound, total in zip(bounds, totals, strict=True)]
        head = [f"# HELP {self.name} {self.about}", f"# TYPE {self.name} histogram"]
        return [*head, *buckets, f"{self.name}_sum {self.sum}", f"{self.name}_count {totals[-1]}"]


class Metrics:
    """What the server has done since its start; safe for threads."""

    ABOUT = {
        "dart_visual_tokens_before_total": "Visual tokens of the prompts.",
        "dart_visual_tokens_after_total": "Visual tokens left after pruning.",
        "dart_completion_tokens_total": "Tokens of the answers.",
    }

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.statuses: Counter[int] = Counter()
        self.tokens = dict.fromkeys(self.ABOUT, 0)
        self.prefill = Histogram("dart_prefill_seconds", "Vision tower and prefill.")
        self.total = Histogram("dart_request_seconds", "From a request's arrival to its end, errors included.")

    def ended(self, status: int, seconds: float) -> None:
        """Count a request: its HTTP status, and seconds from its arrival to its end."""
        with self.lock:
            self.statuses[status] += 1
            self.total.add(seconds)

    def generated(self, before: int, after: int, completion: int, prefill_s: float) -> None:
        """Count an answer: visual tokens before and after pruning, tokens generated, seconds of its prefill."""
        with self.lock:
            for name, value in zip(self.ABOUT, (before, after, completion), strict=True):
                self.tokens[name] += value
            self.prefill.add(prefill_s)

    def text(self, inside: int) -> str:
        """inside: requests that wait or run now."""
        with self.lock:
            lines = ["# HELP dart_requests_total Chat requests by status.", "# TYPE dart_requests_total counter"]
            lines += [f'dart_requests_total{{status="{s}"}} {n}' for s, n in sorted(self.statuses.items())]
            errors = sum(n for status, n in self.statuses.items() if status >= 400)
            lines += ["# HELP dart_errors_total Chat requests that failed.", "# TYPE dart_errors_total counter"]
            lines += [f"dart_errors_total {errors}"]
            lines += ["# HELP dart_requests_inside Requests that wait or run.", "# TYPE dart_requests_inside gauge"]
            lines += [f"dart_requests_inside {inside}"]
            for name, about in self.ABOUT.items():
                lines += [f"# HELP {name} {about}", f"# TYPE {name} counter", f"{name} {self.tokens[name]}"]
            return "\n".join([*lines, *self.prefill.lines(), *self.total.lines()]) + "\n"
