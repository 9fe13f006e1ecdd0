"""The report's data, and the file that holds them."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from dart.compare.data import Sample
from dart.compare.plots import styles
from dart.compare.run import Asking, Shown
from dart.compare.summary import Summary, verdicts
from dart.compare.tables import Results, budget_name, notes, reasons
from dart.viz import View

HOME = Path(__file__).parent
PIXELS, FEW_PIXELS, FEW = 336, 168, 3  # longest side of a picture, and of one of more than a few in a sample
QUALITY = 72
SAME = " / "  # between the answers of several seeds


def to_html(results: Results, parts: Sequence[Summary], asking: Asking, pictures: int) -> str:
    """The whole file. pictures: how many samples of each data set are shown with what they look at."""
    values = {
        "title": html.escape(f"{results['model_name']}: token reduction compared"),
        "style": (HOME / "report.css").read_text(encoding="utf-8"),
        "script": (HOME / "report.js").read_text(encoding="utf-8"),
        "data": json.dumps(_data(results, parts, asking, pictures), ensure_ascii=False, separators=(",", ":"))
        .replace("<", "\\u003c")
        .replace("\u2028", "\\u2028")
        .replace("\u2029", "\\u2029"),
    }
    page = (HOME / "report.html").read_text(encoding="utf-8")
    head, *rest = page.split("{{")
    for part in rest:
        name, after = part.split("}}", 1)
        head += values[name] + after
    return head


def _data(results: Results, parts: Sequence[Summary], asking: Asking, pictures: int) -> dict[str, Any]:
    own = list(results["methods"])[2:]
    marks = styles(own)
    methods = [
        {"name": name, **facts, "colour": marks.get(name, ("", ""))[0], "shape": marks.get(name, ("", ""))[1]}
        for name, facts in results["methods"].items()
    ]
    return {
        "model": results["model_name"],
        "baseline": results["baseline"],
        "kind": results["budget_kind"],
        "methods": methods,
        "budgets": [
            {"key": f"{budget:g}", "value": budget, "name": budget_name(budget)} for budget in results["budgets"]
        ],
        "sets": results["data"],
        "cells": [_rounded(cell) for cell in results["cells"]],
        "averages": [_rounded(row) for row in results["averages"]],
        "notes": notes(results),
        "reasons": reasons(results),
        "samples": {part.data.name: _samples(part, asking, pictures) for part in parts},
    }


def _rounded(row: Mapping[str, Any]) -> dict[str, Any]:
    """Without what the page does not show; figures with as many digits as it does."""
    return {
        name: round(value, 6) if isinstance(value, float) else value for name, value in row.items() if name != "units"
    }


def _samples(part: Summary, asking: Asking, pictures: int) -> dict[str, Any]:
    """keys: of the cells, in the order of each sample's verdicts and answers. texts: what the answers are numbers of.

    Samples: id, question, references, verdicts ("1", "0", "-"), answers; for some of them `shown`.
    """
    right, members = verdicts(part), part.keys
    keys = list(right)
    texts: dict[str, int] = {}
    shown = set(_telling(right, len(part.data.samples), pictures))
    rows = []
    for number, sample in enumerate(part.data.samples):
        answers = [_text(part, sample, members[key]) for key in keys]
        rows.append(
            {
                "id": sample.id,
                "q": sample.question,
                "refs": list(sample.references),
                "v": "".join("-01"[right[key][number] + 1] for key in keys),
                "a": [texts.setdefault(text, len(texts)) for text in answers],
                **({"shown": _shown(part, sample, asking)} if number in shown else {}),
            }
        )
    return {"keys": keys, "texts": list(texts), "rows": rows}


def _telling(right: Mapping[str, Sequence[int]], count: int, most: int) -> list[int]:
    """The samples that the settings disagree about most, of equals the first ones."""

    def agreement(number: int) -> float:
        given = [row[number] for row in right.values() if row[number] >= 0]
        return abs(sum(given) / len(given) - 0.5) if given else 1.0

    return sorted(range(count), key=agreement)[:most]


def _text(part: Summary, sample: Sample, settings: Sequence[str]) -> str:
    """The answer; of several seeds, those that differ."""
    rows = (part.answers.rows.get((sample.id, key)) for key in settings)
    return SAME.join(dict.fromkeys(row["text"] for row in rows if row))


def _shown(part: Summary, sample: Sample, asking: Asking) -> dict[str, Any]:
    """views: what the tokens show; kept: key of a cell -> a bit for each token (of several seeds, the first one's)."""
    shown = Shown(asking, sample)
    rows = {key: part.answers.rows.get((sample.id, own[0])) for key, own in part.keys.items()}
    kept = {key: row["kept"] for key, row in rows.items() if row and row["kept"]}
    try:
        views = shown.prompt.views()
    except ValueError as error:
        frames = [*shown.images, *(frame for film in shown.films for frame in film.frames)]
        return {"views": [_view(View([""], [f], (0, 0), []), len(frames)) for f in frames], "note": str(error)}
    return {"views": [_view(view, len(views)) for view in views], "kept": kept}


def _view(view: View, views: int) -> dict[str, Any]:
    rows, columns = view.grid
    cells = list(view.cells)
    plain = cells == list(range(rows * columns))
    return {
        "titles": list(view.titles),
        "images": [_jpeg(image, PIXELS if views <= FEW else FEW_PIXELS) for image in view.images],
        "grid": [rows, columns],
        **({} if plain else {"cells": cells}),
    }


def _jpeg(image: Image.Image, side: int) -> str:
    small = image.convert("RGB")
    small.thumbnail((side, side))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
