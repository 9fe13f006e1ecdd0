"""Multiple choice: how options are asked and how a letter is read from an answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

LETTERS = "ABCDE"
LETTER_REQUEST = "Answer with the option's letter from the given choices directly."
LETTER_REQUEST_CN = "请直接回答选项字母。"
MARKS = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
LAST_WORDS = 5  # a letter further from the end is taken for a word, such as the article A
LONGEST_ANSWER = 2  # times the options' total length; longer answers are not searched for an option's text


def ask(question: str, options: Sequence[str]) -> str:
    """The question and its lettered options, one a line."""
    return "\n".join([question, *(f"{letter}. {option}" for letter, option in zip(LETTERS, options, strict=False))])


def choice_of(answer: str, options: Mapping[str, str]) -> str | None:
    """The letter that an answer means, or None: MMBench's rules before it would ask a language model.

    options: letter -> text. Exactly one option's letter stands alone near the end, or exactly one option's text occurs.
    """
    words = answer.translate(MARKS).split()
    letters = [letter for letter in options if letter in words]
    if len(letters) == 1 and words.index(letters[0]) > len(words) - LAST_WORDS:
        return letters[0]
    if letters or len(answer) > LONGEST_ANSWER * sum(map(len, options.values())):
        return None
    named = [letter for letter, text in options.items() if text.lower() in answer.lower()]
    return named[0] if len(named) == 1 else None
