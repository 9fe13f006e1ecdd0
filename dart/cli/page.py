"""One comparison as a page of its own: `python -m dart ... --save-html FILE`. Needs no network and no other file."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from html import escape

from PIL import Image

from dart.viz import CELL_PX, View, draw_kept, kept_cells

STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 62rem; padding: 0 1rem; color: #222; }
h1 { font-size: 1.4rem; } figure { display: inline-block; margin: 0 1rem 1rem 0; vertical-align: top; }
img { width: 28rem; max-width: 100%; display: block; } figcaption { color: #666; font-size: .85rem; }
.answers { display: flex; gap: 1rem; flex-wrap: wrap; } .answers p { margin: 0; white-space: pre-wrap; }
.answers div { flex: 1 1 20rem; background: #f4f4f4; padding: 1rem; } small { color: #666; }
table { border-collapse: collapse; margin: 1.5rem 0; }
td, th { padding: .2rem 1.2rem .2rem 0; text-align: right; } td:first-child { text-align: left; }
"""


def page(
    model: str,
    question: str,
    answers: tuple[str, str],
    rows: Sequence[tuple[str, Sequence[str]]],
    notes: Sequence[str],
    views: Sequence[View],
    kept: Sequence[int],
) -> str:
    """HTML. answers, and the two values of every row: without DART, with DART. kept: as for `dart.viz.kept_cells`."""
    lines = [
        f"<tr><td>{escape(name)}</td>{''.join(f'<td>{escape(v)}</td>' for v in values)}</tr>" for name, values in rows
    ]
    boxes = [
        f"<div><small>{name}</small><p>{escape(text)}</p></div>"
        for name, text in zip(("without DART", "with DART"), answers, strict=True)
    ]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<title>{escape(question)}</title><style>{STYLE}</style></head><body>
<h1>{escape(question)}</h1>
<div class="answers">{"".join(boxes)}</div>
<table><tr><th></th><th>without DART</th><th>with DART</th></tr>{"".join(lines)}</table>
{"".join(_panels(views, kept))}
<p><small>{"<br>".join(escape(line) for line in (model, *notes))}</small></p>
</body></html>
"""


def _panels(views: Sequence[View], kept: Sequence[int]) -> list[str]:
    """Every image or frame as the tower sees it, and beside it what stays."""
    panels = []
    for view, cells in zip(views, kept_cells(views, kept), strict=True):
        rows, columns = view.grid
        for title, image in zip(view.titles, view.images, strict=True):
            whole = image.convert("RGB").resize((columns * CELL_PX, rows * CELL_PX))
            counted = f"{title}: {len(cells)} of {rows * columns} patches"
            panels += [_figure(whole, title), _figure(draw_kept(image, cells, view.grid), counted)]
    return panels


def _figure(image: Image.Image, caption: str) -> str:
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    data = base64.b64encode(file.getvalue()).decode()
    text = escape(caption, quote=True)
    return f'<figure><img alt="{text}" src="data:image/jpeg;base64,{data}"><figcaption>{text}</figcaption></figure>\n'
