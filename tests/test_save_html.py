"""`python -m dart ... --save-html`: one page that needs nothing else."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import pytest
from PIL import Image

from dart.cli import main
from dart.cli.page import page
from dart.viz import CELL_PX, DIM, View

ROOT = Path(__file__).resolve().parents[1]
MODEL = ROOT / "playground" / "models" / "llava-tiny"
SCENE = ROOT / "playground" / "data" / "mini" / "textvqa" / "train_images" / "scene_0001.jpg"
QUESTION = "What number is on the blue sign?"


def pictures(html: str) -> list[Image.Image]:
    found = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(each))) for each in found]


def test_a_page_of_the_embedded_model(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    out = tmp_path / "out.html"
    words = ["--model", str(MODEL), "--image", str(SCENE), "--question", QUESTION, "--keep", "64"]
    main([*words, "--max-new-tokens", "4", "--save-html", str(out)])
    html, printed = out.read_text(), capsys.readouterr().out
    assert f"page: {out}" in printed and QUESTION in html
    for text in re.findall(r"with(?:out)? DART: +(\S+)", printed):
        assert f"<p>{text}</p>" in html
    assert "<td>576</td><td>68</td>" in html and "68 of 576 patches" in html
    assert [image.size for image in pictures(html)] == [(24 * CELL_PX, 24 * CELL_PX)] * 2
    assert not re.search(r"(src|href)=\"(?!data:)|https?://|@import|<script", html)


def test_what_was_dropped_is_dark_and_text_stays_text() -> None:
    view = View(['<b>"frame"</b>'], [Image.new("RGB", (40, 20), (200, 200, 200))], (1, 2), [0, 1])
    html = page("m", "<script>x</script>", ("a & b", "<i>"), [("tokens", ["2", "<1>"])], ["1 < 2"], [view], [1])
    assert "<script" not in html and "<b>" not in html and "<i>" not in html and "<1>" not in html
    assert "a &amp; b" in html and "&lt;script&gt;" in html and "1 &lt; 2" in html
    whole, kept = pictures(html)
    middle = CELL_PX // 2
    assert whole.getpixel((middle, middle))[0] == pytest.approx(200, abs=3)
    assert kept.getpixel((middle, middle))[0] == pytest.approx(200 * DIM, abs=6)
    assert kept.getpixel((CELL_PX + middle, middle))[0] == pytest.approx(200, abs=6)


def test_a_page_that_cannot_be_written_is_refused_first(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["--model", "m", "--image", "i", "--question", "q", "--save-html", str(tmp_path / "no" / "out.html")])
    assert ended.value.code == 2 and "cannot be written" in capsys.readouterr().err
