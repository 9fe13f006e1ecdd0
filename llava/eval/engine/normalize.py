"""Answer normalisation of the official VQA evaluation, and the TextVQA evaluator's variant of it."""

from __future__ import annotations

import re

ARTICLES = {"a", "an", "the"}
NUMBERS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten"]
NUMBER_WORDS = {word: str(number) for number, word in enumerate(NUMBERS)} | {"none": "0"}
PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
# Recognised with their apostrophe missing.
_SINGLE = [
    "ain't", "aren't", "can't", "could've", "couldn't", "didn't", "doesn't", "don't", "hadn't", "hasn't", "haven't",
    "he'd", "he's", "how'd", "how'll", "how's", "i'm", "i've", "isn't", "it'd", "it'll", "ma'am", "might've",
    "mightn't", "must've", "mustn't", "needn't", "not've", "o'clock", "oughtn't", "shan't", "should've", "shouldn't",
    "somebody'll", "somebody's", "someone'd", "someone'll", "someone's", "something'd", "something'll", "that's",
    "there'd", "there're", "there's", "they'd", "they'll", "they're", "they've", "'twas", "wasn't", "we've",
    "weren't", "what'll", "what're", "what's", "what've", "when's", "where'd", "where's", "where've", "who'd",
    "who'll", "who's", "who've", "why'll", "why're", "why's", "won't", "would've", "wouldn't", "y'all", "you'd",
    "you'll", "you're", "you've",
]  # fmt: skip
# Recognised with any one of their apostrophes missing.
_DOUBLE = [
    "couldn't've", "hadn't've", "he'd've", "i'd've", "it'd've", "mightn't've", "she'd've", "shouldn't've",
    "somebody'd've", "someone'd've", "something'd've", "there'd've", "they'd've", "we'd've", "who'd've",
    "wouldn't've", "y'all'll", "y'all'd've", "you'd've", "'ow's'at",
]  # fmt: skip


def _without_one_apostrophe(word: str) -> list[str]:
    return [word[:k] + word[k + 1 :] for k, letter in enumerate(word) if letter == "'"]


CONTRACTIONS = {word.replace("'", ""): word for word in _SINGLE} | {
    short: word for word in _DOUBLE for short in _without_one_apostrophe(word)
}
# The official table maps this one the other way round.
CONTRACTIONS["somebody'd"] = "somebodyd"
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD_NOT_IN_NUMBER = re.compile(r"\.(?!\d)")


def _punctuation(text: str) -> str:
    """A mark beside a space (or every mark, in a text with a number like 1,000) vanishes; others become spaces."""
    grouped = _COMMA_IN_NUMBER.search(text) is not None
    out = text
    for mark in PUNCTUATION:
        beside_space = f"{mark} " in text or f" {mark}" in text
        out = out.replace(mark, "" if beside_space or grouped else " ")
    return _PERIOD_NOT_IN_NUMBER.sub("", out)


def _words(text: str) -> str:
    words = [NUMBER_WORDS.get(word, word) for word in text.lower().split()]
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)


def normalize_vqa(text: str) -> str:
    """VQA's rule: no punctuation or articles, lower case, number words as digits, contractions with apostrophe."""
    return _words(_punctuation(text.replace("\n", " ").replace("\t", " ").strip()))


def normalize_answer(text: str) -> str:
    """The TextVQA evaluator's rule (M4C): commas and question marks go, 's becomes a word, then VQA's rule."""
    return normalize_vqa(text.lower().replace(",", "").replace("?", "").replace("'s", " 's"))


def _leave_one_out(matches: list[bool]) -> float:
    """Over each way to leave one reference out, min(matches among the others / 3, 1), averaged."""
    if len(matches) < 2:
        raise ValueError(f"VQA accuracy needs several reference answers (officially 10), got {len(matches)}")
    total = sum(matches)
    return sum(min((total - match) / 3, 1.0) for match in matches) / len(matches)


def vqa_accuracy(answer: str, references: list[str]) -> float:
    """TextVQA's score in [0, 1]: the official formula on answers of the evaluator's own normalisation.

    Raises ValueError without at least two references.
    """
    given = normalize_answer(answer)
    return _leave_one_out([normalize_answer(reference) == given for reference in references])


def challenge_accuracy(answer: str, references: list[str]) -> float:
    """The VQA challenge's score in [0, 1] of an answer as it is submitted.

    As in the official evaluator, answers are only normalised where the references differ among themselves. Raises
    ValueError without at least two references.
    """
    given, *others = (t.replace("\n", " ").replace("\t", " ").strip() for t in (answer, *references))
    if len(set(others)) > 1:
        given, others = normalize_vqa(given), [normalize_vqa(other) for other in others]
    return _leave_one_out([other == given for other in others])
