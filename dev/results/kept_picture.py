"""Draw docs/kept.png, the README's picture: `python -m dev.results.kept_picture`.

The embedded LLaVA-1.5 answers one question of the mini TextVQA with all of its visual tokens and with DART's; the
answers and numbers in the picture are those of this run.
"""

from __future__ import annotations

from PIL import Image, ImageDraw, ImageFont

import dart
from dart.cli import messages
from dart.cli.loading import load
from dart.cli.measure import ask_both
from dart.media import read_image
from dart.utils import replacing
from dart.viz import draw_kept, kept_cells
from dev.results.render import ROOT

OUT = ROOT / "docs" / "kept.png"
MODEL = ROOT / "playground/models/llava-tiny"
IMAGE = ROOT / "playground/data/mini/textvqa/train_images/scene_0001.jpg"
QUESTION = "What number is on the blue sign?"
CONFIG = dart.DartConfig(keep=128)
ANSWER_TOKENS = 8

SIDE, MARGIN, GAP, COLUMN = 420, 20, 24, 350
QUESTION_PX, CAPTION_PX, ANSWER_PX = 34, 24, 48
LINES = (0.0, 0.36, 0.43, 0.68, 0.75)  # of the height: the question, and twice a caption and an answer
INK, SOFT, PAPER, ORANGE = (28, 28, 30), (110, 110, 115), (255, 255, 255), (214, 96, 0)
PALETTE = 128  # colours: the file stays small


def panels() -> tuple[list[Image.Image], list[int], list[str]]:
    """([the picture as the tower sees it, the same with its kept patches], tokens of both, answers of both)."""
    loaded = load(str(MODEL), "cpu", None, None)
    prompt = loaded.prompt(messages(QUESTION, 1, 0), [read_image(str(IMAGE))], [])
    answers = ask_both(loaded.model, prompt, CONFIG, 0, ANSWER_TOKENS)
    (view,) = prompt.views()
    (cells,) = kept_cells([view], answers[1].kept)
    drawn = [view.images[0].convert("RGB"), draw_kept(view.images[0], cells, view.grid)]
    texts = [loaded.tokenizer.decode(each.ids, skip_special_tokens=True).strip() for each in answers]
    return drawn, [len(each.kept) for each in answers], texts


def picture(drawn: list[Image.Image], tokens: list[int], texts: list[str]) -> Image.Image:
    """Both panels, and beside them the question and what was answered with how many tokens."""
    page = Image.new("RGB", (2 * (MARGIN + SIDE + GAP) + COLUMN, SIDE + 2 * MARGIN), PAPER)
    for k, panel in enumerate(drawn):
        page.paste(panel.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (MARGIN + k * (SIDE + GAP), MARGIN))
    draw, left = ImageDraw.Draw(page), MARGIN + 2 * (SIDE + GAP)
    half = len(QUESTION) // 2
    words = [
        (QUESTION[:half].rstrip() + QUESTION[half:].replace(" ", "\n", 1), INK, QUESTION_PX),
        (f"all {tokens[0]} tokens", SOFT, CAPTION_PX),
        (f"“{texts[0]}”", INK, ANSWER_PX),
        (f"DART: {tokens[1]} of {tokens[0]} tokens", ORANGE, CAPTION_PX),
        (f"“{texts[1]}”", INK, ANSWER_PX),
    ]
    for height, (text, color, size) in zip(LINES, words, strict=True):
        draw.text((left, MARGIN + height * SIDE), text, fill=color, font=ImageFont.load_default(size), anchor="la")
    return page.quantize(PALETTE)


if __name__ == "__main__":
    with replacing(OUT) as temporary:
        picture(*panels()).save(temporary, "PNG", optimize=True)
