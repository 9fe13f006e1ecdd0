"""LLaVA-Bench (in the wild): a language model rates GPT-4's reference and our answer from 1 to 10 each."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dart.utils import UserError
from llava.eval.engine.answers import Answers, all_lines, by_question
from llava.eval.engine.judge import Judge, Judgements, fingerprint, judging, verdict_of
from llava.eval.tasks.base import Split, Task, register
from llava.files import read_json

QUESTIONS, CONTEXT, REFERENCE, IMAGES = "questions.jsonl", "context.jsonl", "answers_gpt4.jsonl", "images"
RULES = Path(__file__).resolve().parents[1] / "table" / "rule.json"
CATEGORY_PREFIX = "llava_bench_"
SYSTEM = "You are a helpful and precise assistant for checking the quality of the answer."
OFFICIAL_JUDGE = "gpt-4-0314"
TEMPERATURE, REVIEW_TOKENS = 0.2, 1024
SCORES = re.compile(r"\d+(?:\.\d+)?")
HIGHEST = 10.0

Rows = Sequence[Mapping[str, Any]]


def scores_of(review: str) -> list[float] | None:
    """[reference's, ours] from a review's first line, or None when that is not two numbers up to 10."""
    words = review.strip().split("\n")[0].replace(",", " ").split()
    if len(words) != 2 or not all(SCORES.fullmatch(word) for word in words):
        return None
    scores = [float(word) for word in words]
    return scores if max(scores) <= HIGHEST else None


def content_of(question: Mapping[str, Any], caption: str, rule: Mapping[str, str], texts: Sequence[str]) -> str:
    """What the judge is sent; texts: the reference's answer, then ours."""
    role = rule["role"]
    sides = "".join(f"[{role} {k}]\n{text}\n\n[End of {role} {k}]\n\n" for k, text in enumerate(texts, 1))
    return f"[Context]\n{caption}\n\n[Question]\n{question['text']}\n\n{sides}[System]\n{rule['prompt']}\n\n"


def captions_of(contexts: Rows) -> dict[str, str]:
    """Image -> its description; a list of sentences is joined by line breaks, a text is taken as it is."""
    return {
        row["image"]: row["caption"] if isinstance(row["caption"], str) else "\n".join(row["caption"])
        for row in contexts
    }


def review_all(
    questions: Rows,
    contexts: Rows,
    pair: tuple[Answers, Answers],
    rules: Mapping[str, Any],
    judge: Judge,
    out: Path,
    max_tokens: int = REVIEW_TOKENS,
) -> list[dict[str, Any]]:
    """LLaVA's review rows, in the questions' order, kept in `out` as they come.

    pair: the reference's answers and ours, both by question id. Raises UserError for what is missing.
    """
    captions, sides = captions_of(contexts), [by_question(answers) for answers in pair]
    reviews = []
    with Judgements(out) as judgements:
        for number, question in enumerate(judging(questions), 1):
            name, category = str(question["question_id"]), CATEGORY_PREFIX + question["category"]
            if category not in rules:
                raise UserError(f"question {name}: no rule {category!r}; known: {', '.join(rules)}")
            if question["image"] not in captions:
                raise UserError(f"question {name}: the context file does not describe {question['image']}")
            if any(name not in side for side in sides):
                raise UserError(f"LLaVA-Bench question {name} has no answer; finish the run before judging it")
            both = [side[name] for side in sides]
            content = content_of(question, captions[question["image"]], rules[category], [a["text"] for a in both])
            ids = [answer.get("answer_id", name) for answer in both]
            row = {"id": number, "question_id": question["question_id"]}
            row |= {"answer1_id": ids[0], "answer2_id": ids[1], "category": category}
            key = fingerprint(judge, name, content)
            reviews.append(judgements.get(key, partial(_review, judge, content, max_tokens, row)))
    return reviews


def _review(judge: Judge, content: str, max_tokens: int, row: dict[str, Any]) -> dict[str, Any]:
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]
    name = str(row["question_id"])
    review, scores = verdict_of(name, lambda _: judge.ask(messages, TEMPERATURE, max_tokens), scores_of)
    return {**row, "content": review, "tuple": scores, "judge": judge.model}


def summary_of(reviews: Rows) -> dict[str, dict[str, float]]:
    """LLaVA's summary: per category and for all, our mean score as a percentage of the reference's."""
    scores: dict[str, list[Sequence[float]]] = defaultdict(list)
    for review in reviews:
        scores["all"].append(review["tuple"])
        if "category" in review:
            scores[review["category"]].append(review["tuple"])
    parts = {}
    for name, pairs in sorted(scores.items()):
        # LLaVA rounds the means before it divides them.
        reference, ours = (round(sum(pair[k] for pair in pairs) / len(pairs), 3) for k in (0, 1))
        relative = round(100 * ours / reference, 1) if reference else 0.0
        parts[name] = {"relative": relative, "reference": reference, "ours": ours, "samples": len(pairs)}
    return parts


@register("llavabench")
class LlavaBench(Task):
    folder = "llava-bench-in-the-wild"
    source = "https://huggingface.co/datasets/liuhaotian/llava-bench-in-the-wild"
    splits = {
        "test": Split(
            {QUESTIONS: "questions", IMAGES: "pictures", CONTEXT: "descriptions", REFERENCE: "GPT-4's answers"},
            QUESTIONS,
            IMAGES,
        )
    }
    max_new_tokens = 1024

    def score(
        self, data: Path, answers: Answers, split: str | None = None, cache: Path | None = None
    ) -> dict[str, Any]:
        """cache: the reviews' file, by default LLaVA's folder for them."""
        home = data / self.folder
        questions, contexts, reference = (all_lines(home / n) for n in (QUESTIONS, CONTEXT, REFERENCE))
        judge = Judge.from_environment(OFFICIAL_JUDGE)
        out = cache or home / "reviews" / "reviews.jsonl"
        reviews = review_all(questions, contexts, (reference, answers), read_json(RULES), judge, out)
        parts = summary_of(reviews)
        return {"score": parts["all"]["relative"], "samples": len(reviews), "parts": parts, "judge": judge.model}

    def figures(self, data: Path, answers: Answers, stem: Path, split: str | None = None) -> dict[str, Any]:
        cache = stem.with_name(stem.name + ".reviews.jsonl")
        return {**self.score(data, answers, split, cache), "reviews": str(cache)}
