"""mkdocs' hooks (mkdocs.yml): README.md and CONTRIBUTING.md as pages, links out of docs/, formulas as MathML."""

from __future__ import annotations

import re
from html import unescape
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {"README.md": "readme.md", "CONTRIBUTING.md": "contributing.md"}  # file of the repository: page of the site
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\((?!\w+:)([^)#]*)(#[^)]*)?\)")
PICTURE = re.compile(r"(!\[[^\]]*\]\()docs/")
FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
DISPLAY = {"span": "inline", "div": "block"}


def on_files(files: Any, config: Any) -> Any:
    for name, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links between pages stay; a link to anything else in the repository becomes its path, which is no page here."""
    source = page.file.src_uri
    generated = source in OUTSIDE.values()
    folder = PurePosixPath("." if generated else "docs") / PurePosixPath(source).parent

    def link(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        if not target:
            return found[0]
        path = normpath(str(folder / target))
        if not (ROOT / path).exists():
            raise FileNotFoundError(f"{source} links to {target}, which does not exist")
        inside = OUTSIDE.get(path) or (path.removeprefix("docs/") if path.startswith("docs/") else None)
        if inside is None or files.get_file_from_path(inside) is None:
            return text
        up = "../" * len(PurePosixPath(source).parent.parts)
        return f"[{text}]({up}{inside}{anchor})"

    return PICTURE.sub(r"\1", LINK.sub(link, markdown)) if generated else LINK.sub(link, markdown)


def on_page_content(html: str, page: Any, config: Any, files: Any) -> str:
    return FORMULA.sub(lambda found: convert(unescape(found[2]).strip(), display=DISPLAY[found[1]]), html)
