"""Asking: sample by sample, every setting in turn, each answer on disk as soon as it is there.

Going sample by sample lets all settings share what the sample costs (reading, processing, the vision tower) and lets
whatever disturbs the clock disturb all settings alike.
"""

from __future__ import annotations

import base64
import contextlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
from PIL import Image
from tqdm import tqdm

from dart import strategies
from dart.cli import messages
from dart.cli.loading import Loaded, Prompt
from dart.cli.measure import Answer, answer
from dart.compare.data import DataSet, Sample
from dart.compare.plan import BLIND, UNPRUNED, Budget, Rules, Setting, changes_pixels, reads_tower
from dart.config import DartConfig
from dart.engine.tower import SharedVision
from dart.media import Video
from dart.records import AnswersFile, read_lines
from dart.utils import UserError, one_line

GREY = 128
REMEDY = "choose another --out, or start over with --overwrite"
Row = dict[str, Any]


@dataclass(frozen=True)
class Asking:
    """How one sample is asked. frames: of a video, at most; timed: the first samples of a data set, whose answers are
    timed: each runs the vision tower itself."""

    loaded: Loaded
    rules: Rules
    frames: int
    timed: int


@dataclass
class Shown:
    """What one sample shows, as the settings want it. Raises UserError for files that cannot be read."""

    asking: Asking
    sample: Sample
    images: list[Image.Image] = field(init=False)
    films: list[Video] = field(init=False)

    def __post_init__(self) -> None:
        self.images, self.films = self.sample.pictures(), self.sample.films(self.asking.frames)

    def _prompt(self, images: list[Image.Image], films: list[Video]) -> Prompt:
        return self.asking.loaded.prompt(messages(self.sample.question, len(images), len(films)), images, films)

    @cached_property
    def prompt(self) -> Prompt:
        """The sample as it is."""
        return self._prompt(self.images, self.films)

    @cached_property
    def grey(self) -> Prompt:
        """The same with every picture replaced by grey: what can be answered without looking."""
        films = [Video([_grey(f) for f in film.frames], film.total, film.fps, film.indices) for film in self.films]
        return self._prompt([_grey(image) for image in self.images], films)

    def changed(self, method: str, budget: Budget) -> tuple[Prompt, DartConfig | None]:
        """The prompt of a method that makes other images, and its settings. A budget in tokens becomes a share."""
        if self.films:
            raise ValueError(f"strategy {method!r} changes images, and this sample has a video")
        share = budget / len(self.prompt.positions) if isinstance(budget, int) else budget
        if share >= 1:
            return self.prompt, None
        config = DartConfig(keep=share, strategy=method, exact=True)
        pixels = strategies.get(method).pixels
        return self._prompt([pixels(image, config) for image in self.images], []), config

    def of(self, setting: Setting) -> tuple[Prompt, DartConfig | None]:
        """(the prompt, the settings to prune it with; None: not at all) of one run of this sample."""
        if setting.budget is None:
            return (self.grey if setting.method == BLIND else self.prompt), None
        if changes_pixels(setting.method):
            return self.changed(setting.method, setting.budget)
        return self.prompt, self.asking.rules.config(setting.method, setting.budget, setting.seed)


def _grey(image: Image.Image) -> Image.Image:
    return image.point(lambda _: GREY)


class Answers:
    """The answers to one data set, in `folder`. Raises UserError where they were made with other settings."""

    def __init__(self, folder: Path, data: DataSet, facts: dict[str, Any], overwrite: bool = False):
        self.path = folder / "answers" / f"{data.name}.jsonl"
        settings = {**facts, "data": data.name, "max_new_tokens": data.max_new_tokens}
        self.file = AnswersFile(self.path, settings, overwrite, REMEDY)
        self.rows: dict[tuple[str, str], Row] = {}
        for row in read_lines(self.path):
            self.rows[row["sample"], row["setting"]] = row

    def add(self, row: Row) -> None:
        """Write one answer down. Raises UserError on a full disk."""
        self.file.append(row)
        self.rows[row["sample"], row["setting"]] = row

    def missing(self, data: DataSet, settings: Sequence[Setting]) -> int:
        """How many answers of these are not there yet."""
        return sum((sample.id, each.key) not in self.rows for sample in data.samples for each in settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.__exit__()


def ask_all(asking: Asking, data: DataSet, settings: Sequence[Setting], answers: Answers) -> dict[str, str]:
    """Get the answers that are missing. Returns why, for each setting (its key) that cannot be run.

    Raises UserError for a sample that cannot be read, and where the model itself cannot be asked.
    """
    refused: dict[str, str] = {}
    warm: set[str] = set()
    total = len(data.samples) * len(settings)
    there = total - answers.missing(data, settings)
    with tqdm(total=total, initial=there, desc=data.name, file=sys.stderr, mininterval=2) as bar:
        for number, sample in enumerate(data.samples):
            todo = [s for s in settings if (sample.id, s.key) not in answers.rows]
            bar.update(sum(s.key in refused for s in todo))
            todo = [s for s in todo if s.key not in refused]
            if not todo:
                continue
            shown, shared = _shown(asking, sample, data), SharedVision(asking.loaded.model)
            timed = number < asking.timed
            # There and back by turns: what changes within a sample's turn meets all settings alike.
            for setting in todo if number % 2 == 0 else reversed(todo):
                try:
                    if timed and setting.key not in warm:
                        _ask(shown, setting, 1, None)
                        warm.add(setting.key)
                    row = _ask(shown, setting, data.max_new_tokens, None if timed else shared)
                except Exception as error:  # whatever a method raises is its row's, and ends no comparison
                    refused[setting.key] = _reason(error, setting, sample, data)
                    tqdm.write(f"{data.name}, {setting.key} is not run: {refused[setting.key]}", file=sys.stderr)
                else:
                    answers.add(row)
                bar.update()
    return refused


def _shown(asking: Asking, sample: Sample, data: DataSet) -> Shown:
    """The sample with its prompt made. Raises UserError naming the sample."""
    try:
        shown = Shown(asking, sample)
        _ = shown.prompt
    except (UserError, ValueError) as error:
        raise UserError(f"sample {sample.id} of {data.name}: {one_line(error)}; answers so far are kept") from error
    return shown


def _reason(error: Exception, setting: Setting, sample: Sample, data: DataSet) -> str:
    reason = one_line(error) if isinstance(error, (ValueError, UserError)) else f"{type(error).__name__}: {error}"
    reason = " ".join(reason.split())
    if setting.method == UNPRUNED:
        raise UserError(f"the model cannot answer sample {sample.id} of {data.name}: {reason}") from error
    return reason if sample is data.samples[0] else f"{reason} (sample {sample.id})"


def _ask(shown: Shown, setting: Setting, max_new_tokens: int, shared: SharedVision | None) -> Row:
    """One answer. shared: the vision tower's outputs so far; None: it runs, and the prefill is timed."""
    loaded = shown.asking.loaded
    prompt, config = shown.of(setting)
    alone = shared is None or (config is not None and reads_tower(config))
    with contextlib.nullcontext() if alone or shared is None else shared.on():
        given = answer(loaded.model, prompt, config, max_new_tokens)
    report = given.report
    layers = report.layers if report else loaded.model.config.get_text_config(decoder=True).num_hidden_layers
    return {
        "sample": shown.sample.id,
        "setting": setting.key,
        "text": loaded.tokenizer.decode(given.ids, skip_special_tokens=True).strip(),
        "visual": len(shown.prompt.positions),
        "per_layer": report.visual_per_layer[0] if report else [given.visual] * layers,
        "kept": _packed(given) if prompt is shown.prompt and config is not None else None,
        "select_ms": 1000 * report.seconds if report and config else 0.0,
        "prefill_ms": 1000 * given.prefill_s if shared is None else None,
        "kv_bytes": given.cache_bytes,
    }


def _packed(given: Answer) -> str:
    """The kept visual tokens as a bit each, the first token the highest bit of the first byte, in base64."""
    bits = np.zeros(given.visual, dtype=bool)
    bits[given.kept] = True
    return base64.b64encode(np.packbits(bits).tobytes()).decode()
