"""Scorers against values worked out by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from dart.utils import UserError
from llava.eval import convert_answer_to_mme, eval_mme, eval_pope, eval_textvqa, tasks
from llava.eval.engine.normalize import normalize_answer, normalize_vqa, vqa_accuracy
from llava.eval.tasks import mme, pope, textvqa

SHORT = "\nAnswer the question using a single word or phrase."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The Coca-Cola.", "coca cola"),
        ("1,000", "1000"),
        ("a, b", "b"),
        ("a,b", "ab"),
        ("two dogs", "2 dogs"),
        ("None", "0"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("wouldn'tve", "wouldn't've"),
        ("wouldnt've", "wouldn't've"),
        ("twas", "'twas"),
        ("John's", "john 's"),
        ("3.5", "3.5"),
        ("5.", "5"),
        (".5", ".5"),
        ("e.g.", "eg"),
        ("yes!", "yes"),
        ("stop - sign", "stop sign"),
        ("(left) right", "left right"),
        (" new\nyork\tcity ", "new york city"),
        ("?", ""),
    ],
)
def test_textvqa_normalisation(text: str, expected: str) -> None:
    assert normalize_answer(text) == expected


@pytest.mark.parametrize(("text", "expected"), [("1,000-2", "10002"), ("a,b", "b"), ("x,y", "x y"), ("it's", "it's")])
def test_vqa_normalisation_keeps_its_own_comma_rule(text: str, expected: str) -> None:
    assert normalize_vqa(text) == expected


@pytest.mark.parametrize(("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_vqa_accuracy_leaves_one_reference_out(matches: int, expected: float) -> None:
    references = ["Two"] * matches + ["other"] * (10 - matches)
    assert vqa_accuracy("2", references) == pytest.approx(expected)


def test_vqa_accuracy_needs_references() -> None:
    with pytest.raises(ValueError, match="several reference answers"):
        vqa_accuracy("2", ["2"])


@pytest.mark.parametrize(
    "prompt",
    [
        "What brand?" + SHORT,
        "What brand?\nReference OCR token: ACME, 12" + SHORT,
        "Reference OCR token: ACME, 12\nWhat brand?" + SHORT,
        "OCR tokens: ACME, 12. Question: What brand? Short answer:",
    ],
)
def test_textvqa_finds_the_question_in_every_official_prompt(prompt: str) -> None:
    assert textvqa.question_of(prompt) == "what brand?"


def _textvqa_annotations() -> dict:
    rows = [("pic", "What brand?", ["ACME"] * 10), ("pic", "How many?", ["2"] * 3 + ["3"] * 7)]
    return {
        "data": [{"question_id": k, "image_id": i, "question": q, "answers": a} for k, (i, q, a) in enumerate(rows)]
    }


def test_textvqa_tells_questions_of_one_picture_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = [
        {"question_id": "pic", "prompt": "What brand?" + SHORT, "text": "Acme."},
        {"question_id": "pic", "prompt": "How many?" + SHORT, "text": "two"},
    ]
    (tmp_path / "truth.json").write_text(json.dumps(_textvqa_annotations()))
    (tmp_path / "run.jsonl").write_text("".join(json.dumps(a) + "\n" for a in answers))
    out = tmp_path / "score.json"
    flags = ["--annotation-file", str(tmp_path / "truth.json"), "--out", str(out)]
    eval_textvqa.main([*flags, "--result-file", str(tmp_path / "run.jsonl")])
    last = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert last == json.loads(out.read_text()) and last["score"] == 95.0 and last["samples"] == 2
    eval_textvqa.main([*flags, "--result-dir", str(tmp_path)])
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["run"]["score"] == 95.0


def test_textvqa_refuses_answers_of_another_split() -> None:
    with pytest.raises(UserError, match="not in the annotations"):
        textvqa.score_answers(_textvqa_annotations(), [{"question_id": "x", "prompt": "What?", "text": "a"}])


@pytest.mark.parametrize(
    ("text", "yes"),
    [
        ("Yes", True),
        ("No, it is not", False),
        ("There is no dog.", False),
        ("Yes. There is not", True),
        ("nothing", True),
        ("NO", True),
        ("", True),
        ("not,really", True),
    ],
)
def test_pope_reads_answers_as_llava_does(text: str, yes: bool) -> None:
    assert pope.says_yes(text) is yes


def test_pope_figures() -> None:
    # 3 true positives, 1 false positive, 2 false negatives, 2 true negatives
    answers = [True, True, True, True, False, False, False, False]
    labels = [True, True, True, False, True, True, False, False]
    expected = {"accuracy": 62.5, "precision": 75.0, "recall": 60.0, "f1": 66.67, "yes": 50.0, "samples": 8}
    assert pope.figures(answers, labels) == expected
    assert pope.figures([False], [True])["f1"] == 0.0


def _pope_folder(root: Path) -> tuple[Path, list[dict]]:
    folder = root / "pope"
    (folder / "coco").mkdir(parents=True)
    questions, answers = [], []
    for category in pope.CATEGORIES:
        lines = []
        for k, label in enumerate(("yes", "no")):
            text = f"Is there a {category} {k}?"
            number = len(questions)
            questions.append({"question_id": number, "image": "i.jpg", "text": text + SHORT, "category": category})
            lines.append({"question_id": k + 1, "image": "i.jpg", "text": text, "label": label})
            said = "Yes" if category == "random" else label.capitalize()
            answers.append({"question_id": number, "prompt": text + SHORT, "text": said})
        path = folder / "coco" / f"coco_pope_{category}.json"
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / pope.QUESTIONS).write_text("".join(json.dumps(q) + "\n" for q in questions))
    return folder, answers


def test_pope_by_category_in_any_order_of_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, answers = _pope_folder(tmp_path)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(a) + "\n" for a in reversed(answers)))
    where = ["--annotation-dir", str(folder / "coco"), "--question-file", str(folder / pope.QUESTIONS)]
    eval_pope.main([*where, "--result-file", str(tmp_path / "a.jsonl")])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["categories"]["random"] == pytest.approx(
        {"accuracy": 50.0, "precision": 50.0, "recall": 100.0, "f1": 66.67, "yes": 100.0, "samples": 2}
    )
    assert result["categories"]["popular"]["f1"] == result["categories"]["adversarial"]["f1"] == 100.0
    assert result["score"] == pytest.approx(88.89)


def test_pope_refuses_unfinished_and_foreign_answers(tmp_path: Path) -> None:
    folder, answers = _pope_folder(tmp_path)
    with pytest.raises(UserError, match="finish the run"):
        tasks.get("pope").score(tmp_path, answers[1:])
    answers[0]["prompt"] = "Is there something else?"
    with pytest.raises(UserError, match="same release"):
        tasks.get("pope").score(tmp_path, answers)
    answers[0]["prompt"] = "Is there a random 0?" + SHORT
    (folder / "coco" / "coco_pope_popular.json").unlink()
    with pytest.raises(UserError, match="coco_pope_popular.json does not exist"):
        tasks.get("pope").score(tmp_path, answers)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Yes", "yes"), ("no.", "no"), ("Yes, it is", "yes"), ("a yes", "other"), ("It is not", "other"), ("", "other")],
)
def test_mme_reads_the_first_four_characters(text: str, expected: str) -> None:
    assert mme.read_yes_no(text) == expected


MME_ROWS = {
    ("color", "a.png"): (("Is it red?", "Yes", "Yes"), ("Is it blue?", "No", "no")),
    ("color", "b.png"): (("Is it red?", "Yes", "yes, red"), ("Is it blue?", "No", "maybe")),
    ("code_reasoning", "c.png"): (("Is it 1?", "Yes", "No"), ("Is it 2?", "No", "No")),
}


@pytest.mark.parametrize("split_folders", [False, True])
def test_mme_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str], split_folders: bool) -> None:
    release, answers = tmp_path / "MME" / mme.IMAGES, []
    for (subtask, picture), rows in MME_ROWS.items():
        folder = release / subtask / ("questions_answers_YN" if split_folders else "")
        folder.mkdir(parents=True, exist_ok=True)
        lines = [f"{question} Please answer yes or no.\t{truth}\n" for question, truth, _ in rows]
        (folder / f"{Path(picture).stem}.txt").write_text("".join(lines))
        for question, _, said in rows:
            prompt = f"{question} Please answer yes or no.{SHORT}"
            answers.append({"question_id": f"{subtask}/{picture}", "prompt": prompt, "text": said})
    # color: 3 of 4 questions, 1 of 2 pictures; code_reasoning: 1 of 2 questions, 0 of 1 pictures
    result = tasks.get("mme").score(tmp_path, answers)
    assert result["subtasks"]["color"] == {"accuracy": 75.0, "accuracy_plus": 50.0, "score": 125.0, "samples": 4}
    assert result["perception"] == 125.0 and result["cognition"] == 50.0 and result["score"] == 175.0
    assert "existence" in result["not_run"] and "color" not in result["not_run"] and len(result["not_run"]) == 12

    (tmp_path / "MME" / "answers").mkdir()
    (tmp_path / "MME" / "answers" / "mine.jsonl").write_text("".join(json.dumps(a) + "\n" for a in answers))
    convert_answer_to_mme.main(["--experiment", "mine", "--data-dir", str(tmp_path / "MME")])
    results = tmp_path / "MME" / "eval_tool" / "answers" / "mine"
    assert (results / "color.txt").read_text().splitlines()[3].split("\t") == [
        "b.png",
        "Is it blue? Please answer yes or no.",
        "No",
        "maybe",
    ]
    eval_mme.main(["--results_dir", str(results)])
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == result


def test_easy_vqa_compares_without_case(tmp_path: Path) -> None:
    (tmp_path / "easy_vqa").mkdir()
    (tmp_path / "easy_vqa" / "answers.json").write_text(json.dumps({"0_0": "Yes", "0_1": "red"}))
    answers = [{"question_id": "0_0", "text": "yes"}, {"question_id": "0_1", "text": "blue"}]
    assert tasks.get("easy_vqa").score(tmp_path, answers) == {"score": 50.0, "samples": 2}
    with pytest.raises(UserError, match="no question 9_9"):
        tasks.get("easy_vqa").score(tmp_path, [{"question_id": "9_9", "text": "yes"}])


def test_unknown_benchmark_lists_the_known_ones() -> None:
    with pytest.raises(UserError, match="known: easy_vqa, .*mme, .*textvqa"):
        tasks.get("vqa3")


def test_half_installed_folder_names_everything_missing(tmp_path: Path) -> None:
    (tmp_path / "textvqa" / "train_images").mkdir(parents=True)
    with pytest.raises(UserError) as raised:
        tasks.get("textvqa").examples(tmp_path)
    message = str(raised.value)
    assert textvqa.QUESTIONS in message and textvqa.ANNOTATIONS in message and "train_images" not in message
    assert "textvqa.org" in message
