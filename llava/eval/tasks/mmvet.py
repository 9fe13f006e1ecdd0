"""MM-Vet: open answers, graded from 0 to 1 by a language model that sees the question and the ground truth.

LLaVA's part ends with the submission file; the score is made here where a judge can be reached (engine/judge.py).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from dart.utils import UserError, write_json
from llava.eval.engine.answers import Answers, percent
from llava.eval.engine.judge import Judge, Judgements, fingerprint, judging, verdict_of
from llava.eval.tasks.base import Split, Task, register
from llava.files import read_json

QUESTIONS, TRUTH, IMAGES = "llava-mm-vet.jsonl", "mm-vet.json", "images"
PROMPT = Path(__file__).resolve().parents[1] / "table" / "mmvet_prompt.txt"
AGAIN = "\nPredict the correctness of the answer (digit): "
OFFICIAL_JUDGE = "gpt-4-0613"
GRADE_TOKENS = 3
WARMER = 0.5  # temperature added for every reply that is no grade, as in the official grader
NUMBER = re.compile(r"\d+(\.\d+)?|\.\d+")


def submission(answers: Answers) -> dict[str, str]:
    """The grader's input: {"v1_<question id>": answer}."""
    return {f"v1_{row['question_id']}": row["text"] for row in answers}


def grade_of(reply: str) -> float | None:
    """The grade from 0 to 1 in front of a reply, or None."""
    first = reply.strip().split(" ")[0].strip()
    if not NUMBER.fullmatch(first) or not 0 <= float(first) <= 1:
        return None
    return float(first)


def content_of(entry: Mapping[str, Any], answer: str) -> str:
    """What the judge is sent: the official examples, then this question as an unfinished row of their table."""
    truth = entry["answer"].replace("<AND>", " <AND> ").replace("<OR>", " <OR> ")
    return PROMPT.read_text(encoding="utf-8") + "\n" + " | ".join([entry["question"], truth, answer, ""])


def grade_all(truth: Mapping[str, Any], results: Mapping[str, str], judge: Judge, cache: Path) -> dict[str, Any]:
    """id -> the judge's model, reply and score. Raises UserError for a missing answer or a judge that fails."""
    if missing := [name for name in truth if name not in results]:
        raise UserError(f"MM-Vet question {missing[0]} has no answer; finish the run before grading it")
    grades = {}
    with Judgements(cache) as judgements:
        for name, entry in judging(truth.items()):
            content = content_of(entry, results[name])
            key = fingerprint(judge, name, content)
            grades[name] = judgements.get(key, partial(_grade, judge, name, content))
    return grades


def _grade(judge: Judge, name: str, content: str) -> dict[str, Any]:
    def ask(attempt: int) -> str:
        text = content + AGAIN if attempt else content
        return judge.ask([{"role": "user", "content": text}], WARMER * max(0, attempt - 1), GRADE_TOKENS)

    reply, score = verdict_of(name, ask, grade_of)
    return {"id": name, "model": judge.model, "content": reply, "score": score}


def figures_of(truth: Mapping[str, Any], grades: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Mean grades in percent: over all questions, and over those that need a capability."""
    by_capability: dict[str, list[float]] = defaultdict(list)
    for name, entry in truth.items():
        for capability in {*entry["capability"], "total"}:
            by_capability[capability].append(grades[name]["score"])
    whole = by_capability.pop("total", [])
    parts = {c: {"score": percent(sum(s), len(s)), "samples": len(s)} for c, s in sorted(by_capability.items())}
    return {"score": percent(sum(whole), len(whole)), "samples": len(whole), "capabilities": parts}


@register("mmvet")
class MmVet(Task):
    folder = "mm-vet"
    source = "https://github.com/yuweihao/MM-Vet (mm-vet.zip) and LLaVA's eval.zip (the question file)"
    splits = {"test": Split({QUESTIONS: "questions", IMAGES: "pictures", TRUTH: "ground truth"}, QUESTIONS, IMAGES)}
    max_new_tokens = 1024

    def score(
        self, data: Path, answers: Answers, split: str | None = None, cache: Path | None = None
    ) -> dict[str, Any]:
        """cache: the judgements' file, by default below the benchmark's folder."""
        truth = read_json(data / self.folder / TRUTH)
        judge = Judge.from_environment(OFFICIAL_JUDGE)
        cache = cache or data / self.folder / "results" / "judgements.jsonl"
        grades = grade_all(truth, submission(answers), judge, cache)
        return {**figures_of(truth, grades), "judge": judge.model}

    def upload(self, data: Path, answers: Answers, stem: Path, split: str | None = None) -> Path:
        path = stem.with_name(stem.name + ".json")
        write_json(path, submission(answers))
        return path

    def figures(self, data: Path, answers: Answers, stem: Path, split: str | None = None) -> dict[str, Any]:
        written = self.upload(data, answers, stem, split)
        print(f"submission file: {written}", flush=True)
        cache = stem.with_name(stem.name + ".judgements.jsonl")
        return {**self.score(data, answers, split, cache), "submission": str(written)}
