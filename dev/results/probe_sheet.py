"""Draw docs/results/probe-sets.png, an image of every probe set: `python -m dev.results.probe_sheet`."""

from __future__ import annotations

from PIL import Image, ImageDraw

from dart.utils import replacing
from dev.results.render import RESULTS_FOLDER
from llava.eval.probe.files import items_of
from llava.eval.probe.sets import SETS

COLUMNS, SIDE, CAPTION, MARGIN = 5, 168, 16, 6
PALETTE = 64  # colours: the file stays small


def sheet() -> Image.Image:
    """The first image of every set under its name."""
    rows = -(-len(SETS) // COLUMNS)
    width, height = SIDE + MARGIN, SIDE + CAPTION + MARGIN
    page = Image.new("RGB", (COLUMNS * width, rows * height), "white")
    draw = ImageDraw.Draw(page)
    for number, name in enumerate(SETS):
        left, top = number % COLUMNS * width, number // COLUMNS * height
        draw.text((left, top), name, fill="black")
        image = items_of(name, 1)[0].image().resize((SIDE, SIDE), Image.Resampling.BOX)
        page.paste(image, (left, top + CAPTION))
    return page.quantize(PALETTE)


if __name__ == "__main__":
    with replacing(RESULTS_FOLDER / "probe-sets.png") as temporary:
        sheet().save(temporary, "PNG", optimize=True)
