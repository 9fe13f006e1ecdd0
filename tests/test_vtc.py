"""VTC-Bench's protocol: groups, figures and checks against values worked out by hand, and a run of the command."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import first_questions
from PIL import Image

from dart.config import DartConfig
from dart.stats import wilson
from dart.utils import UserError
from llava.eval import suite, tasks
from llava.eval.engine.answers import read_lines
from llava.eval.engine.loop import blurred, tokens_of
from llava.eval.tasks import ocrbench, textvqa
from llava.eval.tasks.mmbench import read_rows
from llava.eval.vtc import run as vtc
from llava.eval.vtc.groups import FLOOR, Answer, aligned, compare, majority, split, vote
from llava.eval.vtc.read import judged, lmms_score, read_run
from llava.eval.vtc.table import to_markdown
from llava.files import EMBEDDED_DATA, read_json

CHECKPOINT = Path(__file__).parent / "golden" / "ckpt" / "llava-v1.5-tiny"  # four layers
QUESTIONS = 3
PLACE = {"command": "c", "commit": "c", "date": "d", "hardware": "h"}


def run_of(right: str, texts: str = "", tokens: float | None = None, names: str = "abcdefgh") -> dict:
    """One letter a question: 1 right, 0 wrong."""
    texts = texts or "x" * len(right)
    pairs = zip(names, right, texts, strict=False)
    return {("pope", name, "?", 0): Answer(hit == "1", text, tokens, 4 * (tokens or 0)) for name, hit, text in pairs}


ORIGINAL = run_of("11111100", "yyynnnyy")
FILTER = run_of("11100010", tokens=100)
METHOD = run_of("01111001", tokens=100)


def names(keys: list) -> str:
    return "".join(key[1] for key in keys)


def test_groups_and_figures_by_hand():
    groups = split(ORIGINAL, FILTER)
    assert (names(groups.difficult), names(groups.simple)) == ("def", "abc"), "g and h are thrown away"
    block = compare({"original": [ORIGINAL], "m": [METHOD]}, FILTER, 100)
    assert (block["samples"], block["original_right"], block["n_A"], block["n_B"]) == (8, 6, 3, 3)
    by_filter, own = block["rows"]
    assert (by_filter["A"]["accuracy"], by_filter["B"]["accuracy"]) == (0, 100)
    # Right in A: d and e; in B: b and c. Wins d, e; loss a. p = 2 (1 + 3) / 2^3 = 1
    assert (own["A"]["right"], own["B"]["right"], own["wins"], own["losses"], own["p"]) == (2, 2, 2, 1, 1)
    assert own["A"]["accuracy"] == 66.67
    assert own["A"]["interval_95"] == [round(100 * bound, 2) for bound in wilson(2, 3)]


def test_seeds_are_a_mean_and_the_least_certain_of_them():
    many = "abcdefghijkl"
    original, by_filter = run_of("1" * 12, names=many), run_of("1" * 6 + "0" * 6, names=many)
    seeds = [run_of("1" * 12, names=many), run_of("1" * 6 + "1" * 4 + "00", names=many)]
    row = compare({"original": [original], "random": seeds}, by_filter, None)["rows"][1]
    assert (row["runs"], row["A"]["right"], row["wins"], row["losses"]) == (2, 5, 5, 0)
    assert row["p"] == 2 / 2**4, "of the four wins; the six wins of the other have 2 / 2^6"


def test_a_vote_is_right_where_two_of_three_are():
    voted = vote([run_of("1100"), run_of("1010"), run_of("1001")])
    assert [answer.right for answer in voted.values()] == [True, False, False, False]
    voted = vote([run_of("110"), run_of("101"), run_of("011")])
    assert all(answer.right for answer in voted.values())


def test_the_best_constant_answer_is_found_within_each_benchmark():
    def answered(benchmark: str, texts: list[str]) -> dict:
        return {(benchmark, str(k), "?", 0): Answer(True, text) for k, text in enumerate(texts)}

    run = {**answered("pope", ["Yes", "yes.", "No"]), **answered("textvqa", ["7", "8", "8", "8"])}
    assert majority(run, list(run)) == pytest.approx((2 + 3) / 7)
    assert majority(run, []) is None


@pytest.mark.parametrize(("difficult", "verdict"), [(FLOOR - 1, "no verdict: n_A = 29 is under 30"), (FLOOR, "better")])
def test_there_is_no_verdict_on_few_difficult_questions(difficult, verdict):
    many = [chr(300 + k) for k in range(difficult + 5)]
    original, method = run_of("1" * len(many), names=many), run_of("1" * len(many), names=many)
    by_filter = run_of("0" * difficult + "1" * 5, names=many)
    block = compare({"original": [original], "m": [method]}, by_filter, None)
    assert block["rows"][1]["verdict"].startswith(verdict)
    found = {"filter_model": "m", "tested_model": "m", "notes": [], **PLACE}
    own = {**block, "benchmark": "pope", "ratio": 2, "filter": "f", "share": None, "not_run": {"dart": "why | not"}}
    text = to_markdown({**found, "blocks": [own]})
    assert ("n_A is under 30: no verdict" in text) == (difficult < FLOOR)
    assert "not run: why \\| not" in text


def test_questions_that_a_file_lacks_are_named_and_in_no_row():
    lacking = {key: answer for key, answer in METHOD.items() if key[1] not in "dg"}
    more = {**FILTER, ("pope", "z", "?", 0): Answer(True)}
    runs, notes = aligned({"original": ORIGINAL, "filter": more, "m": lacking})
    assert [len(run) for run in runs.values()] == [6, 6, 6]
    assert notes[0] == "filter answers 1 question (z) that original does not: not looked at"
    assert notes[1].startswith("m lacks 2 questions (d, g) of 8")
    block = compare({"original": [runs["original"]], "m": [runs["m"]]}, runs["filter"], None)
    assert (block["n_A"], block["n_B"], block["rows"][1]["A"]["accuracy"]) == (2, 3, 50)


def test_files_without_a_common_question_are_refused():
    with pytest.raises(UserError, match="no question is answered in all of original, filter"):
        aligned({"original": ORIGINAL, "filter": run_of("111", names="xyz")})


@pytest.mark.parametrize(("tokens", "warned"), [(105.0, False), (105.2, True), (94.9, True)])
def test_another_number_of_tokens_is_told(tokens, warned):
    method = run_of("01111001", tokens=tokens)
    block = compare({"original": [ORIGINAL], "m": [method]}, FILTER, 100)
    assert bool(block["notes"]) == warned
    if warned:
        assert block["notes"][0].startswith(f"m had {tokens:.1f} visual tokens in the mean, the budget is 100.0")


def test_a_verdict_with_more_tokens_says_so():
    many = [chr(300 + k) for k in range(FLOOR)]
    original, by_filter = run_of("1" * FLOOR, names=many), run_of("0" * FLOOR, names=many)
    method = run_of("1" * FLOOR, tokens=200, names=many)
    row = compare({"original": [original], "m": [method]}, by_filter, 100)["rows"][1]
    assert row["verdict"] == "better than the filter, with +100% tokens"


# Scores of single answers


def answers_to(name: str, text: str) -> list[dict]:
    fields = ((e.question_id, e.prompt, e.fields) for e in tasks.get(name).examples(EMBEDDED_DATA))
    return [{"question_id": key, "prompt": prompt, "text": text, **more} for key, prompt, more in fields]


TRUTHS = {
    "textvqa": read_json(EMBEDDED_DATA / "textvqa" / textvqa.ANNOTATIONS)["data"][0]["answers"][0],
    "ocrbench": str(read_json(EMBEDDED_DATA / "OCRBench" / ocrbench.QUESTIONS)[0]["answers"][0]),
}


@pytest.mark.parametrize(
    ("name", "text", "headline"),
    [
        ("textvqa", TRUTHS["textvqa"], "score"), ("ocrbench", TRUTHS["ocrbench"], "accuracy"),
        ("pope", "Yes", "accuracy"), ("mme", "No", "accuracy"), ("gqa", "yes", "score"), ("sqa", "A", "score"),
        ("seed", "A", "score"), ("qbench", "A", "score"), ("mmbench", "A", "score"), ("mmbench_cn", "A", "score"),
    ],
)  # fmt: skip
def test_single_scores_add_up_to_the_headline(name, text, headline):
    task, answers = tasks.get(name), answers_to(name, text)
    samples = task.samples(EMBEDDED_DATA, answers)
    whole = task.score(EMBEDDED_DATA, answers, task.split(EMBEDDED_DATA))[headline]
    assert 100 * sum(sample.score for sample in samples) / len(samples) == pytest.approx(whole, abs=0.01)
    if not name.startswith("mmbench"):
        assert whole > 0
    some = {id(row) for row in answers[: len(answers) // 2]}
    part = task.samples(EMBEDDED_DATA, answers[: len(answers) // 2])
    assert 0 < len(part) < len(samples)
    assert {id(row) for sample in part for row in sample.answers} <= some


@pytest.mark.parametrize("name", ["vizwiz", "vqav2"])
def test_challenge_scores_add_up_on_val(name):
    task = tasks.get(name)
    answers = [{**row, "text": "yes"} for row in answers_to(name, "yes")]
    scores = [sample.score for sample in task.samples(EMBEDDED_DATA, answers, "val")]
    assert 100 * sum(scores) / len(scores) == pytest.approx(
        task.score(EMBEDDED_DATA, answers, "val")["score"], abs=0.01
    )


def test_a_question_in_rotations_is_right_when_all_of_them_are():
    task, answers = tasks.get("mmbench"), answers_to("mmbench", "A")
    table = {str(row["index"]): row["answer"] for row in _table("mmbench")}
    for row in answers:
        row["text"] = "ABCD"[row["option_char"].index(table[str(row["question_id"])])]
    assert all(sample.score == 1 for sample in task.samples(EMBEDDED_DATA, answers))
    last = [row for row in answers if row["question_id"] == answers[0]["question_id"]][-1]
    last["text"] = "ABCD"[("ABCD".index(last["text"]) + 1) % len(last["options"])]
    assert task.samples(EMBEDDED_DATA, answers)[0].score == 0
    answers.remove(last)
    left = task.samples(EMBEDDED_DATA, answers)
    assert all(sample.score == 1 for sample in left), "a question with an open rotation is not judged"


def _table(name: str) -> list[dict]:
    task = tasks.get(name)
    return read_rows(EMBEDDED_DATA / task.folder / task.splits[task.split(EMBEDDED_DATA)].questions)


@pytest.mark.parametrize("name", ["mmvet", "llavabench"])
def test_answers_that_a_judge_rates_are_refused_by_name(name):
    with pytest.raises(UserError, match="has no rule that scores a single answer"):
        judged(name, EMBEDDED_DATA, [])


def test_answers_that_a_server_scores_are_refused(tmp_path):
    task = tasks.get("vqav2")
    for path in task.splits["test-dev"].files:
        (tmp_path / task.folder).mkdir(exist_ok=True)
        (tmp_path / task.folder / path).touch()
    with pytest.raises(UserError, match="vqav2 test-dev is scored by https"):
        judged("vqav2", tmp_path, [])


def test_a_question_that_is_asked_twice_counts_twice():
    rows = answers_to("textvqa", "5")[:1] * 2
    assert len(judged("textvqa", EMBEDDED_DATA, rows)) == 2


def test_an_answer_is_right_from_a_half_on_and_tells_its_tokens(tmp_path):
    (tmp_path / "textvqa").mkdir()
    people = [
        {"image_id": "p", "question": f"q{right}", "answers": ["5"] * right + ["no"] * (10 - right)} for right in (1, 2)
    ]
    (tmp_path / "textvqa" / textvqa.ANNOTATIONS).write_text(json.dumps({"data": people}))
    metadata = {"visual_tokens": {"before": 8, "after": 2, "mean": 2.5}}
    rows = [{"question_id": "p", "prompt": f"q{right}", "text": "5", "metadata": metadata} for right in (1, 2)]
    one, two = judged("textvqa", tmp_path, rows).values()
    assert (one.right, two.right) == (False, True), "one person of ten is a score of 0.3, two are 0.6"
    assert (two.tokens, two.before, two.text) == (2.5, 8, "5")


# lmms-eval's samples


def test_lmms_scores():
    assert lmms_score("pope_mini", {"target": "yes", "pope_accuracy": {"score": 1.0}}) == 1
    assert lmms_score("mme", {"target": "Yes", "mme_cognition_score": {"score": 0.0}}) == 0
    assert lmms_score("textvqa_val", {"target": "['7']", "exact_match": 0.6}) == 0.6
    options = {"A": "cat", "B": "dog", "C": "nan", "answer": "A", "prediction": "A. cat"}
    assert lmms_score("mmbench_en_dev", {"target": "A", "gpt_eval_score": options}) == 1, "their own analysis: wrong"
    assert lmms_score("mmbench_en_dev", {"target": "B", "gpt_eval_score": options | {"answer": "B"}}) == 0


@pytest.mark.parametrize("target", ["", None, "[]", "nan"])
def test_an_empty_target_is_never_right(target):
    options = {"A": "cat", "B": "dog", "answer": "", "prediction": ""}
    assert lmms_score("mmbench_en_test", {"target": target, "submission": options}) == 0
    assert lmms_score("gqa", {"target": target, "exact_match": 1.0}) == 0


def test_an_unknown_lmms_task_is_refused_by_name():
    with pytest.raises(UserError, match="lmms-eval's task caption: no per-sample score is known among its"):
        lmms_score("caption", {"target": "a dog", "CIDEr": {"x": 1}})


def lmms_file(path: Path, task: str, scores: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        {"doc_id": k, "target": "yes", "input": f"q{k}", "filtered_resps": ["Yes"], "exact_match": float(score)}
        for k, score in enumerate(scores)
    ]
    file = path.with_name(f"{path.name}_samples_{task}.jsonl")
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_the_latest_samples_of_each_task_in_a_folder_are_read(tmp_path):
    lmms_file(tmp_path / "m" / "20260101_1", "gqa", "000")
    lmms_file(tmp_path / "m" / "20260102_1", "gqa", "101")
    lmms_file(tmp_path / "m" / "20260101_1", "textvqa_val", "1")
    run = read_run(tmp_path, None, EMBEDDED_DATA)
    assert [(key[0], answer.right) for key, answer in run.items()] == [
        ("gqa", True), ("gqa", False), ("gqa", True), ("textvqa_val", True),
    ]  # fmt: skip


def test_files_of_any_model(tmp_path, capsys):
    files = {name: lmms_file(tmp_path / name, "gqa", scores) for name, scores in
             (("original", "1110"), ("filter", "1000"), ("dart", "110"))}  # fmt: skip
    out = tmp_path / "out" / "r.json"
    answers = ",".join(f"{name}={path}" for name, path in files.items())
    flags = ["--ratio", "2", "--out", str(out), "--answers", answers]
    suite.main(["--protocol", "vtc", *flags, "--tokens", "filter=50,dart=80"])
    results = json.loads(out.read_text())
    (block,) = results["blocks"]
    assert (block["n_A"], block["n_B"], block["rows"][1]["wins"]) == (2, 1, 1)
    assert any(note.startswith("dart lacks 1 question (3) of 4") for note in results["notes"])
    assert any("no row random, uniform, pooling, blind" in note for note in results["notes"])
    assert block["notes"] == [
        "dart had 80.0 visual tokens in the mean, the budget is 50.0: +60.0%, not the same budget"
    ]
    assert results["filter_model"].endswith("filter_samples_gqa.jsonl")
    assert str(out) in capsys.readouterr().out
    suite.main(["--protocol", "vtc", *flags])
    notes = json.loads(out.read_text())["notes"]
    assert any(note.startswith("visual tokens of filter, dart were not counted") for note in notes)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("", "--ratio"),
        ("--ratio 6", "argument --ratio: expected some of 2, 3, 4, 5, 10, got '6'"),
        ("--ratio 2 --filter pools", "argument --filter: expected some of downsample, pool, random, vote"),
        ("--ratio 2 --limit 0", "--limit must be 1 or more, got 0"),
        ("--ratio 2 --seeds 0", "--seeds must be 1 or more, got 0"),
        ("--ratio 2 --benchmarks nothing", "unknown benchmark 'nothing'"),
        ("--ratio 2 --strategies darts", "unknown strategy 'darts' (did you mean dart?)"),
        ("--ratio 2 --strategies downsample", "changes images before the processor"),
        ("--ratio 2 --tokens dart=3", "--tokens is for --answers"),
        ("--ratio 2 --answers original=a", "--answers lacks filter"),
        ("--ratio 2 --answers original=a,filter", "argument --answers: expected NAME=VALUE"),
        ("--ratio 2 --answers original=a,original=b", "argument --answers: a name is given twice"),
        ("--ratio 2 --answers original=a,filter=b --tokens c=2", "--tokens names c, which --answers does not"),
        ("--ratio 2 --answers original=a,filter=b --tokens filter=x", "expected NAME=NUMBER"),
        ("--ratio 2,3 --answers original=a,filter=b", "give one --ratio"),
        ("--ratio 2 --answers original=a,filter=b --benchmarks pope,mme", "give one of --benchmarks"),
        ("--ratio 2 --answers original=a,filter=b --device cpu", "--device is a flag of a run"),
        ("--ratio 2 --answers original=a+b,filter=b", "only filter may have several files"),
        ("--ratio 2 --answers original=a,filter=b+c", "expected one file, or three"),
        ("--ratio 2 --answers original=no.jsonl,filter=b", "no.jsonl does not exist"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(flags, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        suite.main(["--protocol", "vtc", *flags.split()])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", "has no rows"),
        ('{"text": "a"}\n', "has a row without question_id and prompt"),
        ('{"question_id": 1, "prompt": "?", "text": "a"}\n', "name the one benchmark"),
    ],
)
def test_files_that_cannot_be_judged_are_refused(content, message, tmp_path):
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=message):
        read_run(tmp_path / "a.jsonl", None, EMBEDDED_DATA)
    with pytest.raises(UserError, match="run lmms-eval with --log_samples"):
        read_run(tmp_path, None, EMBEDDED_DATA)


# Runs


@pytest.mark.parametrize(("ratio", "tokens"), [(2, 144), (3, 64), (4, 36), (5, 25), (10, 9)])
def test_a_share_of_the_grid_is_a_whole_number_of_tokens(ratio, tokens):
    side = math.ceil(24 / ratio)
    dropped = float(vtc.share_flags((side / 24) ** 2)[1])
    assert int(DartConfig(reduction_ratio=dropped).budget(576)) == tokens == side**2


def test_the_budget_follows_the_filter():
    assert vtc.budget_flags(run_of("11", tokens=144)) == ["--max_num_trunction", "144"]
    unequal = {**run_of("1", tokens=100), **run_of("1", tokens=300, names="z")}
    assert vtc.budget_flags(unequal) == ["--reduction_ratio", "0.750000000"]


def test_methods_of_a_layer_and_of_a_kind():
    made = vtc.methods_of(["dart@1", "fastv", "visionzip"], ["mean-over-layers", "after-layer"], 32)
    assert list(made) == ["dart@1", "dart@1 (after-layer)", "fastv", "fastv (after-layer)", "visionzip"]
    assert (made["dart@1"].layer, made["fastv"].layer, made["fastv (after-layer)"].kind) == (1, 2, "after-layer")
    with pytest.raises(UserError, match="--strategies dart@x: expected NAME or NAME@LAYER"):
        vtc.methods_of(["dart@x"], ["after-layer"], 32)


def test_a_limit_is_spread_over_the_questions():
    assert vtc.limited(list(range(10)), 4) == [0, 2, 5, 7]
    assert vtc.limited([1, 2], None) == vtc.limited([1, 2], 5) == [1, 2]


def test_an_answers_tokens_are_those_of_its_first_beam():
    last = SimpleNamespace(visual_before=[8, 8, 9, 9], visual_after=[2, 2, 3, 3], mean_visual_tokens=[4, 4, 5, 5])
    batch = SimpleNamespace(ids=[0, 1], images=[None, None])
    counted = tokens_of(SimpleNamespace(last=last), batch)
    assert [row["visual_tokens"] for row in counted] == [
        {"before": 8, "after": 2, "mean": 4}, {"before": 9, "after": 3, "mean": 5},
    ]  # fmt: skip
    assert tokens_of(None, batch) == tokens_of(SimpleNamespace(last=None), batch) == [{}, {}]
    batch.images = None
    assert tokens_of(SimpleNamespace(last=last), batch) == [{}, {}], "a question about no image has none"


def test_a_blurred_image_has_its_size_and_fewer_details():
    fine = np.indices((40, 60)).sum(0) % 2 * 255
    image = Image.fromarray(np.repeat(fine[..., None], 3, axis=2).astype(np.uint8))
    made = blurred(image, 4)
    assert made.size == image.size
    assert np.asarray(made).std() < np.asarray(image).std() / 4


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return first_questions(tmp_path_factory.mktemp("data"), QUESTIONS)


def test_one_command_runs_everything_and_resumes(data, tmp_path, capsys):
    out = tmp_path / "r.json"
    command = ["--protocol", "vtc", "--ckpt", str(CHECKPOINT), "--data", str(data), "--benchmarks", "textvqa"]
    command += ["--ratio", "2", "--strategies", "dart,uniform@0", "--filter", "pool,vote", "--seeds", "1"]
    command += ["--budget-kinds", "mean-over-layers,after-layer", "--device", "cpu", "--max_new_tokens", "2"]
    command += ["--out", str(out)]
    suite.main(command)
    printed, first = capsys.readouterr().out, json.loads(out.read_text())
    by_pool, by_vote = first["blocks"]
    rows = {row["name"]: row for row in by_pool["rows"]}
    assert set(rows) == {"filter", "blind", "blur", "random", "uniform", "dart (after-layer)", "uniform@0"}
    assert set(rows) | {"pooling"} == {row["name"] for row in by_vote["rows"]}
    assert by_pool["budget"] == rows["filter"]["tokens"] == rows["random"]["tokens"] == 144
    assert rows["dart (after-layer)"]["tokens"] == (2 * 576 + 2 * 144) / 4
    assert rows["blur"]["tokens"] == 576
    assert "the smallest mean is 0.5 of them" in by_pool["not_run"]["dart"]
    assert any(note.startswith("dart (after-layer) had 360.0 visual tokens") for note in by_pool["notes"])
    assert first["filter_model"] == first["tested_model"]
    assert "not run: a mean of 0.25" in out.with_suffix(".md").read_text()
    assert f"answered {QUESTIONS} questions" in printed

    (folder,) = (tmp_path / "r-answers").iterdir()
    part = folder / "textvqa" / "uniform-D2.jsonl"
    whole = part.read_text()
    part.write_text("".join(whole.splitlines(keepends=True)[:1]) + '{"question_id": "half')
    suite.main(command)
    printed = capsys.readouterr().out
    assert f"answered {QUESTIONS - 1} questions" in printed and f"answered {QUESTIONS} questions" not in printed
    assert part.read_text() == whole
    assert json.loads(out.read_text())["blocks"] == first["blocks"]
    tokens = [row["metadata"]["visual_tokens"] for row in read_lines(part)]
    assert tokens == [{"before": 576, "after": 144, "mean": 144.0}] * QUESTIONS


def test_a_benchmark_without_single_scores_is_refused_before_a_model_is_loaded(tmp_path, capsys):
    command = ["--protocol", "vtc", "--ckpt", str(CHECKPOINT), "--benchmarks", "textvqa,mmvet", "--ratio", "2"]
    with pytest.raises(SystemExit):
        suite.main([*command, "--out", str(tmp_path / "r.json")])
    assert capsys.readouterr().err.startswith("error: mm-vet has no rule")
    assert not (tmp_path / "r-answers").exists()
