"""MMBench and its Chinese twin: options in all rotations, a question counts when every rotation is answered right."""

from __future__ import annotations

import base64
import binascii
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dart.utils import UserError
from llava.eval.engine.answers import Answers
from llava.eval.engine.choices import LETTER_REQUEST, LETTER_REQUEST_CN, ask
from llava.eval.engine.circular import OPTIONS, ROTATION, Row, chosen, has_rotations, score_answers
from llava.eval.engine.examples import Example
from llava.eval.engine.tables import read_tsv, write_xlsx
from llava.eval.tasks.base import Sample, Split, Task, register

COLUMNS = ("index", "question", "hint", "A", "B", "image")
NOT_SUBMITTED = {"hint", "category", "source", "image", "comment", "l2-category"}
PREDICTION_COLUMN = 6


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The table, with `index` as int. Raises UserError naming a missing column or a bad index."""
    rows: list[dict[str, Any]] = []
    for number, row in enumerate(read_tsv(path, COLUMNS), 1):
        if not str(row["index"]).isdigit():
            raise UserError(f"{path} row {number}: index must be a number, got {row['index']!r}")
        rows.append({**row, "index": int(str(row["index"]))})
    return rows


def options_of(row: Row) -> list[str]:
    """The options up to the first empty one."""
    options: list[str] = []
    for letter in OPTIONS:
        if row.get(letter) is None:
            break
        options.append(row[letter])
    return options


def _pictures(rows: Sequence[Row]) -> dict[int, bytes]:
    """index -> encoded image; a cell that is another row's index means that row's image."""
    cells = {row["index"]: row["image"] or "" for row in rows}
    pictures: dict[int, bytes] = {}
    for index, cell in cells.items():
        if cell.isdigit() and int(cell) in cells:
            cell = cells[int(cell)]
        try:
            pictures[index] = base64.b64decode(cell, validate=True)
        except (binascii.Error, ValueError) as error:
            raise UserError(
                f"MMBench index {index}: column image is no base64 ({error}); get the table again"
            ) from error
    return pictures


def questions_of(rows: Sequence[Row], lang: str, single_pred_prompt: bool, all_rounds: bool) -> list[Example]:
    """LLaVA's questions about a table's rows. lang: "en" or "cn", the language of the request for a letter.

    all_rounds: ask every question once per option, the options rotated by one each time. Raises UserError.
    """
    pictures = _pictures(rows)
    request = LETTER_REQUEST_CN if lang == "cn" else LETTER_REQUEST
    examples = []
    for row in rows:
        options = options_of(row)
        letters = list(OPTIONS[: len(options)])
        question = row["question"] if row["hint"] is None else f"{row['hint']}\n{row['question']}"
        for turn in range(len(options) if all_rounds else 1):
            turned, chars = options[turn:] + options[:turn], letters[turn:] + letters[:turn]
            prompt = ask(question, turned)
            text = f"{prompt}\n{request}" if single_pred_prompt else prompt
            fields = {"round_id": turn, "options": turned, "option_char": chars}
            examples.append(Example(row["index"], text, pictures[row["index"]], prompt, fields))
    return examples


def write_submission(rows: Sequence[Row], answers: Answers, path: Path) -> None:
    """The server's spreadsheet: the table without images, with a column of predictions."""
    texts = {int(a["question_id"]): a["text"] for a in answers if a.get("round_id", 0) == 0}
    names = [name for name in rows[0] if name not in NOT_SUBMITTED]
    header = [*names[:PREDICTION_COLUMN], "prediction", *names[PREDICTION_COLUMN:]]
    lines = [[texts.get(row["index"]) if name == "prediction" else row[name] for name in header] for row in rows]
    write_xlsx(path, header, lines)


def circular_samples(rows: Sequence[Row], answers: Answers) -> list[Sample]:
    """Questions of which every rotation has an answer: right when all of these are. Raises UserError."""
    given: dict[int, list[Row]] = defaultdict(list)
    for answer in answers:
        given[int(answer["question_id"])].append(answer)
    alone = not has_rotations(rows)  # a row stands for all its rotations
    wanted: dict[int, int] = defaultdict(int)
    own: dict[int, list[tuple[Row, bool]]] = defaultdict(list)
    truths: dict[int, str] = {}  # texts of the right options: their letters turn
    for row in rows:
        if row.get("answer") is None:
            raise UserError(
                f"MMBench question {row['index']}: the table has no answers; only dev tables are scored here"
            )
        wanted[row["index"] % ROTATION] += len(options_of(row)) if alone else 1
        truths[row["index"] % ROTATION] = row[row["answer"]]
        own[row["index"] % ROTATION] += [(answer, chosen(answer) == row["answer"]) for answer in given[row["index"]]]
    return [
        Sample(float(all(hit for _, hit in pairs)), [answer for answer, _ in pairs], [truths[key]])
        for key, pairs in own.items()
        if len(pairs) == wanted[key]
    ]


class MmBenchBase(Task):
    lang: str
    source = "https://github.com/open-compass/MMBench"
    max_new_tokens = 1024

    def read(self, home: Path, part: Split) -> Sequence[Example]:
        rows = read_rows(home / part.questions)
        rounds = not part.server and not has_rotations(rows)
        return questions_of(rows, self.lang, single_pred_prompt=True, all_rounds=rounds)

    def score(self, data: Path, answers: Answers, split: str | None = None) -> dict[str, Any]:
        return score_answers(read_rows(self._table(data, split)), answers)

    def samples(self, data: Path, answers: Answers, split: str | None = None) -> list[Sample]:
        return circular_samples(read_rows(self._table(data, split)), answers)

    def upload(self, data: Path, answers: Answers, stem: Path, split: str | None = None) -> Path:
        path = stem.with_name(stem.name + ".xlsx")
        write_submission(read_rows(self._table(data, split)), answers, path)
        return path

    def _table(self, data: Path, split: str | None) -> Path:
        return data / self.folder / self.splits[self.split(data, split)].questions


def _splits(**tables: str) -> dict[str, Split]:
    server = "https://mmbench.opencompass.org.cn/mmbench-submission"
    return {name: Split({t: "table"}, t, server=server if name == "test" else "") for name, t in tables.items()}


@register("mmbench")
class MmBench(MmBenchBase):
    folder = "mmbench"
    lang = "en"
    splits = _splits(
        dev="mmbench_dev_20230712.tsv", dev_2023_10="mmbench_dev_en_20231003.tsv", test="mmbench_test_en_20231003.tsv"
    )


@register("mmbench_cn")
class MmBenchCn(MmBenchBase):
    folder = "mmbench_cn"
    lang = "cn"
    splits = _splits(dev="mmbench_dev_cn_20231003.tsv", test="mmbench_test_cn_20231003.tsv")
