"""OCRBench and Q-Bench, against values worked out by hand, and their entry points on the recorded tiny checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from dart.utils import UserError
from llava.eval import model_vqa_ocrbench, model_vqa_qbench, tasks
from llava.eval.tasks import ocrbench, qbench

ROOT = Path(__file__).resolve().parents[1]
MINI = ROOT / "playground" / "data" / "mini"
CHECKPOINT = ROOT / "tests" / "golden" / "ckpt" / "llava-v1.5-tiny"
QUESTIONS = 3


@pytest.mark.parametrize(
    ("dataset", "truths", "text", "right"),
    [
        ("IIIT5K", ["CENTRE"], "The word is Centre.", True),
        ("IIIT5K", "CENTRE", "centre", True),
        ("IIIT5K", ["a b"], "a\nb", True),
        ("IIIT5K", ["ab"], "a b", False),
        ("IIIT5K", ["x", "y"], "only y here", True),
        ("IIIT5K", ["friend"], "", False),
        ("HME100k", ["x ^ 2\n+ 1"], "so x^2 +1", True),
        ("HME100k", ["X"], "x", False),
    ],
)
def test_ocrbench_wants_the_truth_in_the_answer(dataset: str, truths: str | list[str], text: str, right: bool) -> None:
    assert ocrbench.is_right(dataset, truths, text) == right


OCR = [
    {"dataset_name": "svt", "type": "Regular Text Recognition", "answers": ["a"]},
    {"dataset_name": "IAM", "type": "Handwriting Recognition", "answers": ["b"]},
    {"dataset_name": "docVQA", "type": "Doc-oriented VQA", "answers": ["c"]},
]


def test_ocrbench_counts_by_group_and_type() -> None:
    answers = [{"question_id": k, "text": text} for k, text in enumerate(("A!", "no", "see C"))]
    rows = ocrbench.judged(OCR, answers)
    assert [(row["predict"], row["result"]) for row in rows] == [("A!", 1), ("no", 0), ("see C", 1)]
    result = ocrbench.figures_of(rows)
    assert (result["score"], result["samples"], result["accuracy"]) == (2, 3, 66.67)
    assert result["parts"] == {
        "Text Recognition": {"right": 1, "samples": 2},
        "Regular Text Recognition": {"right": 1, "samples": 1},
        "Handwriting Recognition": {"right": 0, "samples": 1},
        "Doc-oriented VQA": {"right": 1, "samples": 1},
    }
    with pytest.raises(UserError, match="OCRBench question 2 has no answer"):
        ocrbench.judged(OCR, answers[:2])


def test_qbench_prompts() -> None:
    english = tasks.get("qbench").examples(MINI)[0]
    asked = "Is there a triangle in the image?\nChoose between one of the options as follows:\nA. Yes\nB. No\n"
    assert english.text == english.prompt == asked
    chinese = tasks.get("qbench_zh").examples(MINI)[0]
    assert chinese.text == "图中有三角形吗？\\在下列选项中选择一个:\nA. 是\nB. 否\n"
    assert english.image == chinese.image and english.image.is_file()


@pytest.mark.parametrize(
    ("text", "option"),
    [
        ("A", "Dark red"),
        ("B.", "Red"),
        ("B. Red", "Red"),
        ("red", "Red"),
        ("Dark red.", "Dark red"),
        ("It is green", "Green"),
        ("red or green", None),
        ("", None),
        ("D", None),
    ],
)
def test_qbench_reads_a_letter_or_an_options_text(text: str, option: str | None) -> None:
    assert qbench.option_of(text, ["Dark red", "Red", "Green"]) == option


def test_qbench_reads_chinese_options() -> None:
    assert qbench.option_of("是。", ["是", "否"]) == "是"
    assert qbench.option_of("B", ["是", "否"]) == "否"
    assert qbench.option_of("不清楚", ["是", "否"]) is None


ENTRIES = [
    {"img_path": "a", "question": "?", "candidates": ["Yes", "No"], "correct_ans": "No", "type": 0, "concern": 0},
    {"img_path": "b", "question": "?", "candidates": ["x", "y"], "correct_ans": "x", "type": 1, "concern": 3},
    {"img_path": "a", "question": "?", "candidates": ["x", "y"], "correct_ans": "y", "type": 1, "concern": 0},
]


def test_qbench_score_and_submission(tmp_path: Path) -> None:
    answers = [{"question_id": k, "text": text} for k, text in enumerate(("B", "y", "hm"))]
    result = qbench.score_answers(ENTRIES, answers)
    assert (result["score"], result["samples"], result["not_read"]) == (33.33, 3, 1)
    assert result["parts"] == {
        "yes-or-no": {"accuracy": 100.0, "samples": 1},
        "distortion": {"accuracy": 50.0, "samples": 2},
        "what": {"accuracy": 0.0, "samples": 2},
        "in-context other": {"accuracy": 0.0, "samples": 1},
    }
    qbench.write_submission(ENTRIES, answers, tmp_path / "up" / "s.jsonl")
    rows = [json.loads(line) for line in (tmp_path / "up" / "s.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [{**entry, "response": a["text"]} for entry, a in zip(ENTRIES, answers, strict=True)]
    with pytest.raises(UserError, match="question 2 has no answer"):
        qbench.score_answers(ENTRIES, answers[:2])
    with pytest.raises(UserError, match="question 2 has no answer"):
        qbench.write_submission(ENTRIES, answers[:2], tmp_path / "t.jsonl")


def test_qbench_test_split_is_submitted_not_scored(tmp_path: Path) -> None:
    home = tmp_path / "qbench"
    (home / qbench.IMAGES).mkdir(parents=True)
    entries = [{k: v for k, v in ENTRIES[0].items() if k != "correct_ans"}]
    (home / "llvisionqa_test.json").write_text(json.dumps(entries))
    figures = tasks.get("qbench").figures(tmp_path, [{"question_id": 0, "text": "B"}], tmp_path / "up" / "run")
    assert figures["score"] is None and "Q-Bench" in figures["server"]
    assert json.loads(Path(figures["submission"]).read_text())["response"] == "B"
    with pytest.raises(UserError, match="only the dev file"):
        qbench.score_answers(entries, [{"question_id": 0, "text": "B"}])


@pytest.mark.parametrize(
    ("name", "path", "field"),
    [
        ("qbench", "qbench/llvisionqa_dev.json", "candidates"),
        ("ocrbench", "OCRBench/OCRBench/OCRBench.json", "answers"),
    ],
)
def test_entries_without_a_field_and_missing_pictures_are_named(
    name: str, path: str, field: str, tmp_path: Path
) -> None:
    folder = Path(path).parts[0]
    shutil.copytree(MINI / folder, tmp_path / folder)
    picture = sorted(tmp_path.rglob("*.jpg"))[1]
    picture.unlink()
    with pytest.raises(UserError, match=f"lacks the picture .*{picture.name}.*get it from"):
        tasks.get(name).examples(tmp_path)
    rows = json.loads((tmp_path / path).read_text(encoding="utf-8"))
    del rows[2][field]
    (tmp_path / path).write_text(json.dumps(rows))
    with pytest.raises(UserError, match=f"question 2 lacks {field}"):
        tasks.get(name).examples(tmp_path)


def _few(source: Path, folder: Path) -> Path:
    rows = json.loads(source.read_text(encoding="utf-8"))[:QUESTIONS]
    (folder / source.name).write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    return folder / source.name


def test_model_vqa_qbench_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = MINI / "qbench"
    questions, answers = _few(home / "质衡-问答-验证集.json", tmp_path), tmp_path / "answers.jsonl"
    flags = ["--model-path", str(CHECKPOINT), "--image-folder", str(home / qbench.IMAGES), "--lang", "zh"]
    flags += ["--questions-file", str(questions), "--answers-file", str(answers), "--device", "cpu"]
    model_vqa_qbench.main([*flags, "--max_new_tokens", "2", "--sparse", "--max_num_trunction", "64"])
    assert "576 -> 68" in capsys.readouterr().out
    rows = [json.loads(line) for line in answers.read_text(encoding="utf-8").splitlines()]
    assert [row["question_id"] for row in rows] == [0, 1, 2] and "在下列选项中选择一个" in rows[0]["prompt"]
    upload = tmp_path / "answers_upload" / "answers.jsonl"
    submitted = [json.loads(line) for line in upload.read_text(encoding="utf-8").splitlines()]
    assert [row["response"] for row in submitted] == [row["text"] for row in rows]


def test_model_vqa_ocrbench_flags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = MINI / "OCRBench"
    questions = _few(home / "OCRBench" / "OCRBench.json", tmp_path)
    flags = ["--model_path", str(CHECKPOINT), "--image_folder", str(home / "OCRBench_Images"), "--save_name", "run"]
    flags += ["--OCRBench_file", str(questions), "--output_folder", str(tmp_path / "out"), "--num_workers", "4"]
    model_vqa_ocrbench.main([*flags, "--device", "cpu", "--max_new_tokens", "2"])
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["samples"] == QUESTIONS
    rows = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [row["image_path"] for row in rows] == [e["image_path"] for e in json.loads(questions.read_text())]
    assert sum(row["result"] for row in rows) == figures["score"] and all("predict" in row for row in rows)
