"""Tables on disk: tab-separated ones as pandas writes them, and spreadsheets for the servers that want .xlsx."""

from __future__ import annotations

import csv
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from dart.utils import UserError, needed, replacing

# What pandas.read_table takes for an empty cell, so that prompts equal LLaVA's.
EMPTY = frozenset([
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
])  # fmt: skip
NOT_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff]")


def read_tsv(path: Path, needed: Sequence[str]) -> list[dict[str, str | None]]:
    """Rows by column name, empty cells as None. Raises UserError for a missing column or a row of the wrong width."""
    if not path.is_file():
        raise UserError(f"{path} does not exist")
    csv.field_size_limit(sys.maxsize)  # images are cells
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, delimiter="\t")
        names = next(reader, [])
        if missing := [name for name in needed if name not in names]:
            raise UserError(
                f"{path} lacks the column {', '.join(missing)}; expected {', '.join(needed)}, found {', '.join(names)}"
            )
        rows = []
        for cells in reader:
            if len(cells) != len(names):
                raise UserError(f"{path} line {reader.line_num} has {len(cells)} cells for {len(names)} columns")
            rows.append({n: None if c in EMPTY or not c else c for n, c in zip(names, cells, strict=True)})
    return rows


def write_xlsx(path: Path, header: Sequence[str], rows: Iterable[Sequence[str | int | None]]) -> None:
    """One sheet, replaced in one step. Raises UserError without openpyxl."""
    book = needed("openpyxl", "eval").Workbook(write_only=True)
    sheet = book.create_sheet("Sheet1")

    def cell(value: str | int | None) -> Any:
        if not isinstance(value, str):
            return value
        made = needed("openpyxl.cell", "eval").WriteOnlyCell(sheet, NOT_XML.sub("", value))
        made.data_type = "s"  # also where it begins with "=": an answer is no formula
        return made

    for row in [header, *rows]:
        sheet.append([cell(value) for value in row])
    with replacing(path) as temporary:
        book.save(temporary)
