"""GQA, VQAv2 and VizWiz against values worked out by hand; LLaVA's converters."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest

from dart.utils import UserError
from llava.eval import tasks
from llava.eval.engine.challenge import score_challenge
from llava.eval.engine.normalize import challenge_accuracy
from llava.eval.tasks import gqa, vizwiz, vqav2

MINI = Path(__file__).resolve().parents[1] / "playground" / "data" / "mini"


def _convert(name: str, **flags: object) -> None:
    words = [word for flag, value in flags.items() for word in ("--" + flag.replace("_", "-"), str(value))]
    importlib.import_module(f"scripts.{name}").main(words)


def _lines(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def _gqa_question(answer: str, structural: str, semantic: str, balanced: bool = True) -> dict[str, Any]:
    return {"answer": answer, "isBalanced": balanced, "types": {"structural": structural, "semantic": semantic}}


GQA = {
    "1": _gqa_question("yes", "verify", "obj"),
    "2": _gqa_question("red", "query", "attr"),
    "3": _gqa_question("left", "choose", "rel"),
    "4": _gqa_question("red", "query", "attr", balanced=False),
}


def test_gqa_score_and_prediction_file(tmp_path: Path) -> None:
    answers = [{"question_id": k, "text": t} for k, t in (("1", "Yes."), ("2", "Dark red"), ("3", "left"))]
    result = gqa.score_answers(GQA, answers)
    assert (result["score"], result["samples"]) == (66.67, 3)
    assert result["parts"]["binary"] == {"accuracy": 100.0, "samples": 2}
    assert result["parts"]["open"] == {"accuracy": 0.0, "samples": 1} == result["parts"]["semantic: attr"]
    with pytest.raises(UserError, match="question 3 has no answer"):
        gqa.score_answers(GQA, answers[:2])
    _convert("convert_gqa_for_eval", src=_lines(tmp_path / "a.jsonl", answers), dst=tmp_path / "p.json")
    assert json.loads((tmp_path / "p.json").read_text())[0] == {"questionId": "1", "prediction": "yes"}


@pytest.mark.parametrize(
    ("answer", "references", "expected"),
    [
        ("2", ["two"] * 3 + ["3"] * 7, 0.9),  # references differ: number words become digits
        ("2", ["two"] * 10, 0.0),  # equal references are taken as they are, as the official evaluator does
        ("two", ["two"] * 10, 1.0),
        ("red", ["Red!"] + ["red"] + ["blue"] * 8, 0.6),  # 2 of 10: leave one out gives 1/3 twice and 2/3 eight times
        ("a dog", ["dog"] * 4 + ["cat"] * 6, 1.0),
    ],
)
def test_challenge_accuracy(answer: str, references: list[str], expected: float) -> None:
    assert challenge_accuracy(answer, references) == pytest.approx(expected)


def test_vqav2_score_by_type_of_answer() -> None:
    def truth(key: int, kind: str, *texts: str) -> dict[str, Any]:
        return {"question_id": key, "answer_type": kind, "answers": [{"answer": text} for text in texts]}

    annotations = [
        truth(1, "yes/no", *["yes"] * 10),
        truth(2, "number", *["2"] * 2, *["3"] * 8),
        truth(3, "other", *["red"] * 10),
        truth(4, "other", *["blue"] * 10),
    ]
    answers = [{"question_id": k, "text": t} for k, t in ((1, "Yes"), (2, "Two."), (3, "red"), (4, "green"))]
    result = score_challenge("VQAv2", annotations, "question_id", answers)
    assert result["answer_types"]["number"] == {"accuracy": 60.0, "samples": 1}
    assert result["answer_types"]["other"] == {"accuracy": 50.0, "samples": 2}
    assert (result["score"], result["samples"]) == (65.0, 4)
    with pytest.raises(UserError, match="VQAv2 question 4 has no answer"):
        score_challenge("VQAv2", annotations, "question_id", answers[:3])


def test_vqav2_submission_has_every_question_of_the_test_split(tmp_path: Path) -> None:
    home, split = tmp_path / "vqav2", "llava_vqav2_mscoco_test-dev2015"
    asked = _lines(home / vqav2.TEST, [{"question_id": k, "image": "x.jpg", "text": "?"} for k in (1, 2, 3)])
    _lines(home / "answers" / split / "m" / "merge.jsonl", [{"question_id": 2, "text": "Two dogs."}])
    _convert("convert_vqav2_for_submission", dir=home, ckpt="m", split=split)
    rows = json.loads((home / "answers_upload" / split / "m.json").read_text())
    assert rows == [{"question_id": k, "answer": "2 dogs" if k == 2 else ""} for k in (1, 2, 3)]
    # The default split is the one that is installed: test-dev, whose score the server makes.
    (home / "test2015").mkdir()
    (home / "test2015" / "x.jpg").write_bytes(b"")
    _lines(home / vqav2.TEST_DEV, [json.loads(asked.read_text().splitlines()[0])])
    task = tasks.get("vqav2")
    assert task.split(tmp_path) == "test-dev" and task.split(MINI) == "val"
    assert [e.question_id for e in task.examples(tmp_path)] == [1]
    figures = task.figures(tmp_path, [{"question_id": 1, "text": "A"}], tmp_path / "up" / "m")
    assert figures["score"] is None and figures["server"].startswith("https://eval.ai")
    assert json.loads(Path(figures["submission"]).read_text())[0] == {"question_id": 1, "answer": ""}


def test_vizwiz_submission_and_prompts(tmp_path: Path) -> None:
    asked = _lines(tmp_path / "q.jsonl", [{"question_id": 0, "image": "t0.jpg"}, {"question_id": 1, "image": "t1.jpg"}])
    answers = [{"question_id": 1, "text": "Unanswerable."}, {"question_id": 0, "text": "The Can"}]
    result, out = _lines(tmp_path / "a.jsonl", answers), tmp_path / "up" / "m.json"
    flags = {"annotation_file": asked, "result_file": result, "result_upload_file": out}
    _convert("convert_vizwiz_for_submission", **flags)
    rows = [{"image": "t0.jpg", "answer": "can"}, {"image": "t1.jpg", "answer": "unanswerable"}]
    assert json.loads(out.read_text()) == rows
    with pytest.raises(UserError, match="question 0 has no answer"):
        vizwiz.submission([{"question_id": 0, "image": "t0.jpg"}, {"question_id": 1, "image": "t1.jpg"}], answers[:1])
    example = tasks.get("vizwiz").examples(MINI)[0]
    assert example.text.endswith(
        "?\nWhen the provided information is insufficient, respond with 'Unanswerable'.\n"
        "Answer the question using a single word or phrase."
    )


def test_a_benchmark_folder_with_one_missing_picture_is_named(tmp_path: Path) -> None:
    home = tmp_path / "vizwiz"
    (home / "val").mkdir(parents=True)
    rows = json.loads((MINI / "vizwiz" / "val.json").read_text())
    (home / "val.json").write_text(json.dumps(rows))
    for row in rows[1:]:
        (home / "val" / row["image"]).write_bytes(b"")
    with pytest.raises(UserError) as error:
        tasks.get("vizwiz").examples(tmp_path)
    assert str(home / "val" / rows[0]["image"]) in str(error.value) and "vizwiz.org" in str(error.value)
    assert "more of" not in str(error.value)
