"""Scoring of benchmarks that use the VQA challenge's accuracy over ten people's answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from llava.eval.engine.answers import Answers, answer_to, by_question, percent
from llava.eval.engine.normalize import challenge_accuracy, normalize_answer


def references_of(truth: Mapping[str, Any]) -> list[str]:
    """People's answers in an annotation, as often as they gave them."""
    return [answer["answer"] for answer in truth["answers"]]


def accuracy_of(truth: Mapping[str, Any], text: str) -> float:
    """One answer's accuracy, 0 to 1. truth: the question's annotation."""
    return challenge_accuracy(normalize_answer(text), references_of(truth))


def score_challenge(
    benchmark: str, annotations: Sequence[Mapping[str, Any]], key: str, answers: Answers
) -> dict[str, Any]:
    """Accuracy in percent over all annotated questions, and by type of answer.

    benchmark: its name, for errors. key: the annotations' field that is the answers' question id. Raises UserError
    when an answer is missing.
    """
    given = by_question(answers)
    scores: dict[str, list[float]] = defaultdict(list)
    for truth in annotations:
        text = answer_to(given, truth[key], benchmark)
        scores[truth["answer_type"]].append(accuracy_of(truth, text))
    whole = [value for values in scores.values() for value in values]
    types = {n: {"accuracy": percent(sum(v), len(v)), "samples": len(v)} for n, v in sorted(scores.items())}
    return {"score": percent(sum(whole), len(whole)), "samples": len(whole), "answer_types": types}
