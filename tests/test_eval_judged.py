"""Benchmarks that a language model judges, against a stand-in server: MM-Vet and LLaVA-Bench."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from judge_server import StandIn, drip, stand_in

from dart.utils import UserError
from llava.eval import eval_gpt_review_bench, eval_mmvet, score, summarize_gpt_review, tasks
from llava.eval.engine import judge
from llava.eval.engine.answers import read_lines
from llava.eval.engine.judge import Judge, Judgements, fingerprint
from llava.eval.tasks import llavabench, mmvet

ROOT = Path(__file__).resolve().parents[1]
MINI = ROOT / "playground" / "data" / "mini"
HELLO = [{"role": "user", "content": "hello"}]


@pytest.fixture(autouse=True)
def _no_judge_and_no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_BASE_URL", "OPENAI_API_KEY", "JUDGE_MODEL", "JUDGE_TIMEOUT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(judge, "TRIES", 3)


def use(server: StandIn, monkeypatch: pytest.MonkeyPatch, **environment: str) -> None:
    for name, value in {"OPENAI_BASE_URL": server.url + "/", "OPENAI_API_KEY": "secret", **environment}.items():
        monkeypatch.setenv(name, value)


def test_a_request_is_what_the_api_wants(monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in(lambda *_: "hi") as server:
        use(server, monkeypatch, JUDGE_MODEL="mine")
        assert Judge.from_environment("official").ask(HELLO, 0.5, 7) == "hi"
    assert server.requests == [{"model": "mine", "messages": HELLO, "temperature": 0.5, "max_tokens": 7}]
    assert server.keys == ["Bearer secret"] and server.paths == ["/v1/chat/completions"]


def test_own_server_needs_no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in(lambda *_: "hi") as server:
        monkeypatch.setenv("OPENAI_BASE_URL", server.url)
        assert Judge.from_environment("official").ask(HELLO, 0.0, 1) == "hi"
    assert server.keys == [None] and server.requests[0]["model"] == "official"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("OPENAI_BASE_URL", "", "set OPENAI_API_KEY"),
        ("OPENAI_BASE_URL", "file:///etc/hosts", "must start with http"),
        ("OPENAI_BASE_URL", "http://host:port/v1", "and name a host"),
        ("OPENAI_BASE_URL", "http://[host/v1", "and name a host"),
        *(
            ("JUDGE_TIMEOUT", value, "JUDGE_TIMEOUT must be a number of seconds")
            for value in ("soon", "inf", "nan", "0")
        ),
    ],
)
def test_bad_environment_is_named(name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if value:
        monkeypatch.setenv("OPENAI_API_KEY", "secret")
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=message):
        Judge.from_environment("official")


@pytest.mark.parametrize("code", [503, 429])
def test_passing_problems_are_tried_again(code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in(lambda number, _: code if number < 2 else "at last") as server:
        use(server, monkeypatch)
        assert Judge.from_environment("m").ask(HELLO, 0.0, 1) == "at last"
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    "reply", [b"<html>busy</html>", b'{"choices": []}', b'{"choices": [{"message": {}}]}', b"[" * 100_000]
)
def test_what_is_no_completion_is_one_clear_error(reply: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in(lambda *_: reply) as server:
        use(server, monkeypatch)
        with pytest.raises(UserError, match="its reply is no chat completion"):
            Judge.from_environment("m").ask(HELLO, 0.0, 1)


def test_the_key_goes_to_no_other_host_and_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in(lambda *_: "stolen") as elsewhere:
        with stand_in(lambda *_: 302, headers={"Location": elsewhere.url + "/chat/completions"}) as server:
            use(server, monkeypatch)
            with pytest.raises(UserError, match="HTTP 302"):
                Judge.from_environment("m").ask(HELLO, 0.0, 1)
        assert elsewhere.requests == [] and len(server.requests) == 1
    with stand_in(lambda *_: 401, error=b"wrong key: secret") as server:
        use(server, monkeypatch)
        own = Judge.from_environment("m")
        with pytest.raises(UserError, match=r"wrong key: \(the key\)") as raised:
            own.ask(HELLO, 0.0, 1)
    assert "secret" not in str(raised.value) + repr(own)


def test_a_key_that_is_none_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sec\nret")
    with pytest.raises(UserError, match="OPENAI_API_KEY has characters") as raised:
        Judge.from_environment("m")
    assert "sec" not in str(raised.value)


def test_a_pause_that_the_server_asks_for_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    began = time.monotonic()
    with stand_in(lambda n, _: 503 if n == 0 else "hi", headers={"Retry-After-Ms": "300"}) as server:
        use(server, monkeypatch)
        assert Judge.from_environment("m").ask(HELLO, 0.0, 1) == "hi"
    assert time.monotonic() - began > 0.3


def test_a_reply_has_a_longest_size_and_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "LONGEST_REPLY", 1 << 20)
    monkeypatch.setattr(judge, "TRIES", 1)
    with stand_in(lambda *_: "x" * (2 << 20)) as server:
        use(server, monkeypatch)
        with pytest.raises(UserError, match="its reply is longer than 1 MiB"):
            Judge.from_environment("m").ask(HELLO, 0.0, 1)
    with drip(pause=0.1, times=50) as url:
        monkeypatch.setenv("OPENAI_BASE_URL", url)
        monkeypatch.setenv("JUDGE_TIMEOUT", "0.5")
        began = time.monotonic()
        with pytest.raises(UserError, match=r"no answer within 0\.5 s"):
            Judge.from_environment("m").ask(HELLO, 0.0, 1)
        assert time.monotonic() - began < 3


def test_without_openai_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(UserError, match=r"needs the package openai: pip install '\.\[eval\]'"):
        Judge("http://x/v1", "k", "m").ask(HELLO, 0.0, 1)


def test_a_refusal_is_not_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in(lambda *_: 401) as server:
        use(server, monkeypatch)
        with pytest.raises(
            UserError, match=r"judge m at http://127.* failed \(HTTP 401: .*scripted.*check OPENAI_BASE_URL"
        ):
            Judge.from_environment("m").ask(HELLO, 0.0, 1)
    assert len(server.requests) == 1


def test_silence_and_absence_end_in_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    with stand_in(lambda *_: 1.0) as server:
        use(server, monkeypatch, JUDGE_TIMEOUT="0.1")
        with pytest.raises(UserError, match="no answer within 0.1 s"):
            Judge.from_environment("m").ask(HELLO, 0.0, 1)
    with pytest.raises(UserError, match="refused"):
        Judge.from_environment("m").ask(HELLO, 0.0, 1)


def test_judgements_survive_a_kill_and_have_one_writer(tmp_path: Path) -> None:
    path = tmp_path / "sub" / "j.jsonl"
    with Judgements(path) as file:
        assert file.get("a", lambda: {"score": 1}) == {"score": 1, "judged": "a"}
        with pytest.raises(UserError, match="written by another process"):
            Judgements(path)
    with path.open("ab") as raw:
        raw.write(b'{"score": 2, "jud')
    with Judgements(path) as file:
        assert file.get("a", lambda: pytest.fail("asked again"))["score"] == 1
        file.get("b", lambda: {"score": 3})
    assert [row["score"] for row in read_lines(path)] == [1, 3]


def test_another_answer_or_judge_is_judged_anew() -> None:
    one = Judge("u", "k", "m")
    keys = {fingerprint(one, 1, "x"), fingerprint(one, 1, "y"), fingerprint(one, 2, "x")}
    assert len({*keys, fingerprint(Judge("u", "k", "n"), 1, "x")}) == 4
    assert fingerprint(Judge("elsewhere", "other", "m"), 1, "x") in keys


@pytest.mark.parametrize(
    ("reply", "grade"),
    [("0.5", 0.5), (" 1.0\n", 1.0), ("0", 0.0), (".5 | because", 0.5), ("1.1", None), ("-0.1", None), ("nan", None)]
    + [("Score: 1", None), ("", None), ("1,0", None)],
)
def test_grades_are_read_strictly(reply: str, grade: float | None) -> None:
    assert mmvet.grade_of(reply) == grade


TRUTH = {
    "v1_0": {"question": "x?", "answer": "-1<AND>-5", "capability": ["ocr", "math"]},
    "v1_1": {"question": "y?", "answer": "a", "capability": ["ocr"]},
    "v1_2": {"question": "z?", "answer": "b", "capability": ["rec"]},
}


def test_mmvet_content_ends_in_an_open_row_of_the_official_table() -> None:
    content = mmvet.content_of(TRUTH["v1_0"], "x = -1")
    assert content.startswith("Compare the ground truth and prediction from AI models, to give a correctness score")
    assert content.endswith(" | 1.0\n\nx? | -1 <AND> -5 | x = -1 | ")
    assert content.count("\nWhat is x in the equation? | -1 <AND> -5 | ") == 5


def test_mmvet_figures_by_hand() -> None:
    grades = {name: {"score": value} for name, value in zip(TRUTH, (0.5, 1.0, 0.0), strict=True)}
    result = mmvet.figures_of(TRUTH, grades)
    assert (result["score"], result["samples"]) == (50.0, 3)
    assert result["capabilities"] == {
        "math": {"score": 50.0, "samples": 1},
        "ocr": {"score": 75.0, "samples": 2},
        "rec": {"score": 0.0, "samples": 1},
    }


def test_mmvet_command_resumes_after_garbage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mm-vet.json").write_text(json.dumps(TRUTH))
    (tmp_path / "m.json").write_text(json.dumps({name: "answer" for name in TRUTH}))
    out = tmp_path / "grades"
    flags = ["--mmvet_path", str(tmp_path), "--result_file", str(tmp_path / "m.json"), "--result_path", str(out)]
    with stand_in(lambda n, _: "0.5" if n == 0 else "I like it") as server:
        use(server, monkeypatch)
        with pytest.raises(SystemExit) as stop:
            eval_mmvet.main(flags)
        assert stop.value.code == 2
        assert "no score for question v1_1 in 3 replies, the last one 'I like it'" in capsys.readouterr().err
        temperatures = [request["temperature"] for request in server.requests]
        assert temperatures == [0.0, 0.0, 0.0, 0.5]  # one graded, then warmer and warmer
        assert server.requests[2]["messages"][0]["content"].endswith("correctness of the answer (digit): ")
    with stand_in(lambda *_: "1.0") as server:
        use(server, monkeypatch)
        eval_mmvet.main(flags)
        assert len(server.requests) == 2
        eval_mmvet.main(flags)
        assert len(server.requests) == 2
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["score"] == 83.33
    official = json.loads((out / "m_gpt-4-0613-grade-1runs.json").read_text())
    assert official["v1_1"] == {"model": ["gpt-4-0613"], "content": ["1.0"], "score": [1.0]}


@pytest.mark.parametrize(
    ("review", "scores"),
    [
        ("8 9\nboth good", [8.0, 9.0]),
        ("8, 9", [8.0, 9.0]),
        (" 7.5 10 \n", [7.5, 10.0]),
        ("8 9 10", None),
        ("8", None),
        ("11 3", None),
        ("Assistant 1: 8", None),
        ("nan nan", None),
        ("", None),
    ],
)
def test_scores_are_read_strictly(review: str, scores: list[float] | None) -> None:
    assert llavabench.scores_of(review) == scores


def test_summary_by_hand() -> None:
    reviews = [
        {"category": "llava_bench_conv", "tuple": [8.0, 4.0]},
        {"category": "llava_bench_conv", "tuple": [7.0, 8.0]},
        {"category": "llava_bench_detail", "tuple": [9.0, 3.0]},
    ]
    parts = llavabench.summary_of(reviews)
    assert parts["llava_bench_conv"] == {"relative": 80.0, "reference": 7.5, "ours": 6.0, "samples": 2}
    assert parts["llava_bench_detail"]["relative"] == 33.3
    assert parts["all"]["relative"] == 62.5  # 5.0 of 8.0


def _answers(folder: Path, name: str = "ours.jsonl", text: str = "a picture") -> Path:
    rows = [
        {"question_id": q["question_id"], "prompt": q["text"], "text": text, "answer_id": f"o{q['question_id']}"}
        for q in read_lines(MINI / "llava-bench-in-the-wild" / "questions.jsonl")
    ]
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / name


def _review_flags(ours: Path, output: Path) -> list[str]:
    home = MINI / "llava-bench-in-the-wild"
    flags = ["--question", str(home / "questions.jsonl"), "--context", str(home / "context.jsonl")]
    flags += ["--rule", str(llavabench.RULES), "--answer-list", str(home / "answers_gpt4.jsonl"), str(ours)]
    return [*flags, "--output", str(output)]


def test_llavabench_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = _review_flags(_answers(tmp_path), tmp_path / "reviews" / "review_m.jsonl")
    with pytest.raises(SystemExit) as stop:
        eval_gpt_review_bench.main(flags)
    assert stop.value.code == 2 and "set OPENAI_API_KEY" in capsys.readouterr().err
    with stand_in(lambda n, _: "8 6\nfine" if n < 5 else 500) as server:
        use(server, monkeypatch)
        with pytest.raises(SystemExit):
            eval_gpt_review_bench.main(flags)
        error = capsys.readouterr().err
        assert "HTTP 500" in error and error.splitlines()[-1].startswith("error: judge gpt-4-0314 at http")
    with stand_in(lambda *_: "8 6\nfine") as server:
        use(server, monkeypatch)
        eval_gpt_review_bench.main([*flags, "--max-tokens", "99"])
        assert len(server.requests) == 18 - 5 and server.requests[0]["max_tokens"] == 99
    system, user = (message["content"] for message in server.requests[0]["messages"])
    assert system == "You are a helpful and precise assistant for checking the quality of the answer."
    assert user.startswith("[Context]\nThere is a ") and "[Assistant 2]\na picture\n\n[End of Assistant 2]" in user
    assert "[System]\nWe would like to request your feedback" in user and user.endswith("your judgment.\n\n")
    rows = list(read_lines(tmp_path / "reviews" / "review_m.jsonl"))
    assert [row["id"] for row in rows] == list(range(1, 19)) and rows[0]["tuple"] == [8.0, 6.0]
    assert (rows[1]["answer2_id"], rows[1]["category"]) == ("o1", "llava_bench_detail")
    capsys.readouterr()
    summarize_gpt_review.main(["-d", str(tmp_path / "reviews"), "-i", "0", "1"])
    assert capsys.readouterr().out.splitlines()[:2] == ["review_m", "all 75.0"]


def test_what_the_judge_would_lack_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    own = Judge.from_environment("m")
    question = {"question_id": 4, "image": "x.jpg", "text": "t", "category": "conv"}
    context, answers, rules = [{"image": "x.jpg", "caption": "c"}], [{"question_id": 4, "text": "a"}], {}
    cases = [
        ("no rule 'llava_bench_conv'", context, answers, rules),
        ("does not describe x.jpg", [], answers, {"llava_bench_conv": {}}),
        ("question 4 has no answer", context, [], {"llava_bench_conv": {}}),
    ]
    for number, (message, contexts, ours, known) in enumerate(cases):
        with pytest.raises(UserError, match=message):
            llavabench.review_all([question], contexts, (answers, ours), known, own, tmp_path / f"{number}.jsonl")


@pytest.mark.parametrize(("name", "reply", "expected"), [("llavabench", "10 5", 50.0), ("mmvet", "0.3", 30.0)])
def test_scoring_an_answers_file_with_and_without_a_judge(
    name: str, reply: str, expected: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    rows = [{"question_id": e.question_id, "prompt": e.prompt, "text": "x"} for e in tasks.get(name).examples(MINI)]
    answers = tmp_path / "run.jsonl"
    answers.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["--task", name, "--data", str(MINI), "--answers-file", str(answers)]
    with pytest.raises(SystemExit) as stop:
        score.main(flags)
    captured = capsys.readouterr()
    assert stop.value.code == 2 and "the judge is needed now" in captured.err
    if name == "mmvet":
        submission = tmp_path / "answers_upload" / "run.json"
        assert str(submission) in captured.out and json.loads(submission.read_text())["v1_3"] == "x"
    with stand_in(lambda *_: reply) as server:
        use(server, monkeypatch)
        score.main(flags)
        first = json.loads(capsys.readouterr().out.splitlines()[-1])
        score.main(flags)
        assert len(server.requests) == len(rows)
    assert (first["score"], first["samples"]) == (expected, len(rows))


def test_mmvet_answers_must_be_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    with pytest.raises(UserError, match="question v1_1 has no answer"):
        mmvet.grade_all(TRUTH, {"v1_0": "a"}, Judge.from_environment("m"), tmp_path / "c.jsonl")


def test_mmvet_converter(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"question_id": 0, "text": "x"}\n{"question_id": 7, "text": "y"}\n')
    flags = ["--src", str(tmp_path / "a.jsonl"), "--dst", str(tmp_path / "results" / "m.json")]
    command = [sys.executable, str(ROOT / "scripts" / "convert_mmvet_for_eval.py"), *flags]
    subprocess.run(command, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert json.loads((tmp_path / "results" / "m.json").read_text()) == {"v1_0": "x", "v1_7": "y"}
