"""Benchmarks with options, against values worked out by hand: letters, MMBench, SEED-Bench, ScienceQA."""

from __future__ import annotations

import base64
import io
import json
import sys
from pathlib import Path

import openpyxl
import pytest
from PIL import Image

from dart.utils import UserError
from llava.eval import eval_science_qa, tasks
from llava.eval.engine import circular
from llava.eval.engine.choices import LETTER_REQUEST, choice_of
from llava.eval.engine.tables import read_tsv, write_xlsx
from llava.eval.tasks import mmbench, seed, sqa

OPTIONS = {"A": "red", "B": "dark blue", "C": "green"}


@pytest.mark.parametrize(
    ("answer", "letter"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C) green", "C"),
        ("The answer is B", "B"),
        ("A dog is what one can see there", None),  # an article far from the end
        ("Either A or B", None),
        ("it is Dark Blue", "B"),
        ("red or green", None),
        ("green " * 10, None),  # far longer than all options
        ("b", None),
        ("D", None),
        ("", None),
    ],
)
def test_a_letter_is_read_by_mmbenchs_rules(answer: str, letter: str | None) -> None:
    assert choice_of(answer, OPTIONS) == letter


def _picture(color: str) -> str:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


COLUMNS = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "source", "l2-category"]


def _table(path: Path, rows: list[list[str]], columns: list[str] = COLUMNS) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join("\t".join(row) + "\n" for row in [columns, *rows]), encoding="utf-8")
    return path


def _rows() -> list[list[str]]:
    return [
        ["7", "Which?", "Look.", "red", "blue", "nan", "", "B", "color", _picture("blue"), "s", "perception"],
        ["1000007", "Which?", "Look.", "blue", "red", "", "", "A", "color", "7", "s", "perception"],
        ["8", "How many?", "", "1", "2", "3", "", "A", "count", _picture("red"), "s", "reasoning"],
    ]


def test_mmbench_prompts_rotations_and_pictures(tmp_path: Path) -> None:
    rows = mmbench.read_rows(_table(tmp_path / "t.tsv", _rows()))
    once = mmbench.questions_of(rows, "en", single_pred_prompt=True, all_rounds=False)
    assert [e.question_id for e in once] == [7, 1000007, 8]
    assert once[0].prompt == "Look.\nWhich?\nA. red\nB. blue"
    assert once[0].text == f"Look.\nWhich?\nA. red\nB. blue\n{LETTER_REQUEST}"
    assert once[1].picture().getpixel((0, 0)) == once[0].picture().getpixel((0, 0)) == (0, 0, 255)
    rounds = mmbench.questions_of(rows, "cn", single_pred_prompt=True, all_rounds=True)[-3:]
    assert [e.fields["option_char"] for e in rounds] == [["A", "B", "C"], ["B", "C", "A"], ["C", "A", "B"]]
    assert rounds[1].text == "How many?\nA. 2\nB. 3\nC. 1\n请直接回答选项字母。"
    bare = mmbench.questions_of(rows, "en", single_pred_prompt=False, all_rounds=False)
    assert all(e.text == e.prompt for e in bare)


def _answer(index: int, text: str, options: list[str], turn: int = 0) -> dict:
    chars = list("ABCD"[: len(options)])
    return {
        "question_id": index,
        "round_id": turn,
        "text": text,
        "options": options[turn:] + options[:turn],
        "option_char": chars[turn:] + chars[:turn],
    }


def test_circular_evaluation_wants_every_rotation(tmp_path: Path) -> None:
    rows = mmbench.read_rows(_table(tmp_path / "t.tsv", _rows()))
    first, second, third = (_answer(7, "B", ["red", "blue"]), _answer(1000007, "A", ["blue", "red"]), ["1", "2", "3"])
    # The third question's options are rotated by the loop: A. 1 | A. 2, B. 3, C. 1 | A. 3, B. 1, C. 2
    turns = [_answer(8, letter, third, turn) for turn, letter in enumerate("ACB")]
    result = circular.score_answers(rows, [first, second, *turns])
    assert (result["score"], result["vanilla"], result["samples"], result["not_read"]) == (100.0, 100.0, 2, 0)
    turns[2]["text"] = "C"
    second["text"] = "hm"
    result = circular.score_answers(rows, [first, second, *turns])
    assert (result["score"], result["vanilla"], result["not_read"]) == (0.0, 100.0, 1)
    second["text"] = "It is blue."
    result = circular.score_answers(rows, [first, second, *turns])
    assert result["abilities"] == {
        "perception": {"circular": 100.0, "samples": 1},
        "reasoning": {"circular": 0.0, "samples": 1},
    }
    with pytest.raises(UserError, match="question 8 has no answer"):
        circular.score_answers(rows, [first, second])


def _sheet(path: Path) -> list[list[str | int | None]]:
    return [list(row) for row in openpyxl.load_workbook(path).active.values]


def test_mmbench_submission(tmp_path: Path) -> None:
    rows = mmbench.read_rows(_table(tmp_path / "t.tsv", _rows()))
    answers = [_answer(7, "B <&>", ["red", "blue"]), _answer(8, "A", ["1", "2", "3"]), _answer(8, "C", ["1"], 1)]
    mmbench.write_submission(rows, answers, tmp_path / "up" / "x.xlsx")
    header, *lines = _sheet(tmp_path / "up" / "x.xlsx")
    assert header == ["index", "question", "A", "B", "C", "D", "prediction", "answer"]
    assert lines[0] == [7, "Which?", "red", "blue", None, None, "B <&>", "B"]
    assert [line[6] for line in lines] == ["B <&>", None, "A"]


def test_spreadsheets_have_no_control_characters_and_are_replaced_in_one_step(tmp_path: Path, monkeypatch) -> None:
    write_xlsx(tmp_path / "x.xlsx", ["a", "b"], [["\x0bok", 3], ["=1+1", None]])
    assert _sheet(tmp_path / "x.xlsx") == [["a", "b"], ["ok", 3], ["=1+1", None]]
    assert openpyxl.load_workbook(tmp_path / "x.xlsx").active["A3"].data_type == "s", "an answer is no formula"
    monkeypatch.setitem(sys.modules, "openpyxl", None)
    with pytest.raises(UserError, match=r"pip install '\.\[eval\]'"):
        write_xlsx(tmp_path / "x.xlsx", ["a"], [])
    assert [path.name for path in tmp_path.iterdir()] == ["x.xlsx"]


def test_wrong_tables_are_named(tmp_path: Path) -> None:
    renamed = [c if c != "hint" else "Hint" for c in COLUMNS]
    with pytest.raises(UserError, match=r"t\.tsv lacks the column hint; expected .*found .*Hint"):
        mmbench.read_rows(_table(tmp_path / "t.tsv", _rows(), renamed))
    with pytest.raises(UserError, match="line 2 has 3 cells for 12 columns"):
        read_tsv(_table(tmp_path / "t.tsv", [["1", "2", "3"]]), ["index"])
    rows = _rows()
    rows[0][0] = "seven"
    with pytest.raises(UserError, match="row 1: index must be a number, got 'seven'"):
        mmbench.read_rows(_table(tmp_path / "t.tsv", rows))
    rows = _rows()
    rows[2][9] = "not base64!"
    with pytest.raises(UserError, match="index 8: column image is no base64"):
        mmbench.questions_of(mmbench.read_rows(_table(tmp_path / "t.tsv", rows)), "en", True, False)


def test_mmbench_asks_all_rounds_when_the_table_has_no_rotations(tmp_path: Path) -> None:
    path = tmp_path / "mmbench" / "mmbench_dev_20230712.tsv"
    _table(path, _rows())
    assert len(tasks.get("mmbench").examples(tmp_path)) == 3
    _table(path, [row for row in _rows() if row[0] != "1000007"])
    assert len(tasks.get("mmbench").examples(tmp_path)) == 5
    with pytest.raises(UserError, match="mmbench has no split 'val'; known: dev, dev_2023_10, test"):
        tasks.get("mmbench").examples(tmp_path, "val")


SEED = {
    "question_type": {"Instance Attributes": 3, "Action Recognition": 10},
    "questions": [
        {"question_id": "1", "question_type_id": 3, "data_type": "image", "answer": "A"},
        {"question_id": "v2", "question_type_id": 10, "data_type": "video", "answer": "B"},
        {"question_id": "3", "question_type_id": 3, "data_type": "image", "answer": "C"},
    ],
}


def test_seed_wants_the_letter_alone_and_takes_numbers_for_ids(tmp_path: Path) -> None:
    texts = {1: "A", "v2": "B", 3: "C."}
    answers = [{"question_id": k, "text": t} for k, t in texts.items()]
    result = seed.score_answers(SEED, answers)
    assert (result["score"], result["samples"]) == (66.67, 3)
    assert result["parts"]["image"] == {"accuracy": 50.0, "samples": 2} == result["parts"]["Instance Attributes"]
    assert result["parts"]["video"] == {"accuracy": 100.0, "samples": 1}
    seed.write_submission(SEED, answers, tmp_path / "up.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "up.jsonl").read_text().splitlines()]
    assert rows[1:] == [{"question_id": "v2", "prediction": "B"}, {"question_id": "3", "prediction": "C."}]
    with pytest.raises(UserError, match="question 3 has no answer"):
        seed.score_answers(SEED, answers[:2])


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("A", "A"),
        ("E", "E"),
        ("B. blue", "B"),
        ("The answer is C.", "C"),
        ("Well. The answer is D. Yes", "D"),
        ("The answer is C. The answer is D.", "FAILED"),
        ("The answer is C", "FAILED"),
        ("AB", "FAILED"),
        ("F", "FAILED"),
        ("B.blue", "FAILED"),
        ("", "FAILED"),
    ],
)
def test_science_qa_reads_letters_as_llava_does(text: str, letter: str) -> None:
    assert sqa.letter_of(text) == letter


def _science(folder: Path) -> Path:
    problems = {
        "1": {"choices": ["x", "y"], "answer": 1, "image": "image.png"},
        "2": {"choices": ["x", "y"], "answer": 0, "image": None},
        "3": {"choices": ["x", "y"], "answer": 1, "image": "image.png"},
        "4": {"choices": ["x", "y"], "answer": 0, "image": "image.png"},
        "9": {"choices": ["x", "y"], "answer": 0, "image": None},
    }
    (folder / "problems.json").write_text(json.dumps(problems))
    (folder / "pid_splits.json").write_text(json.dumps({"test": ["1", "2", "3", "4"], "train": ["9"]}))
    questions = [
        {"id": "1", "image": "1/image.png", "conversations": [{"from": "human", "value": "<image>\nWhich?\nA. x"}]},
        {"id": "2", "conversations": [{"from": "human", "value": "Which?"}]},
    ]
    (folder / "llava_test_CQM-A.json").write_text(json.dumps(questions))
    return folder


def test_science_qa_prompts(tmp_path: Path) -> None:
    folder = _science(tmp_path)
    first, second = sqa.read_questions(folder / sqa.QUESTIONS, folder / "images", single_pred_prompt=True)
    assert first.text == f"Which?\nA. x\n{LETTER_REQUEST}" and first.prompt == f"<image>\n{first.text}"
    assert first.image == folder / "images" / "1" / "image.png"
    assert second.image is None and second.prompt == second.text == f"Which?\n{LETTER_REQUEST}"


def test_science_qa_score(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = _science(tmp_path)
    # 1: right, 2: right, 3: a letter that is no option, 4: no answer at all
    answers = [("1", "<image>\nq", "B"), ("2", "q", "A. x"), ("3", "<image>\nq", "C")]
    rows = [{"question_id": k, "prompt": p, "text": t} for k, p, t in answers]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--base-dir", str(folder), "--result-file", str(tmp_path / "a.jsonl")]
    outs = ["--output-file", str(tmp_path / "out.jsonl"), "--output-result", str(tmp_path / "result.json")]
    eval_science_qa.main([*flags, *outs])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (figures["score"], figures["accuracy"]) == (33.33, 50.0)
    assert figures["parts"]["image"] == {"accuracy": 33.33, "samples": 3, "no_letter": 1}
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["results"] == {"1": 1, "2": 0, "3": -1, "4": -1} and (result["acc"], result["count"]) == (50.0, 4)
    sides = json.loads((tmp_path / "out.jsonl").read_text())
    assert [row["question_id"] for row in sides["correct"]] == ["1", "2"]
    assert sides["incorrect"][1] | {"question": ""} == {
        "question_id": "4",
        "parsed_ans": "FAILED",
        "ground_truth": "A",
        "question": "",
        "pred": "FAILED",
        "is_multimodal": True,
    }
    with pytest.raises(SystemExit) as stop:
        eval_science_qa.main([*flags, "--split", "val"])
    assert stop.value.code == 2 and "known: test, train" in capsys.readouterr().err
