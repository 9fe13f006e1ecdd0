"""From a row of LLaVA's data to token ids and labels: what the model shall say is found by its place in the prompt.

The prompt is written by the template; the tokenizer says which characters each token stands for. A token is learned if
all of it lies in an answer or its end marker; one that lies half in it shows that template and tokenizer do not fit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from llava.constants import DEFAULT_IMAGE_TOKEN, IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import Conversation, SeparatorStyle

ROLES = ("human", "gpt")
Turns = list[tuple[str, str]]


class BadSample(ValueError):
    """A row that nothing can be learned from; the message begins with its id."""


@dataclass(frozen=True)
class Prompt:
    """text: the whole conversation; answers: (first, behind the last) character of what is to be learned."""

    text: str
    answers: list[tuple[int, int]]


@dataclass(frozen=True)
class Tokens:
    """ids, labels: LongTensor [S]; ids are -200 where an image goes, labels -100 where nothing is learned."""

    ids: torch.Tensor
    labels: torch.Tensor


def turns_of(row: dict[str, Any], name: str) -> Turns:
    """The row's (role, text) pairs, human first and gpt last. Raises BadSample for roles that do not alternate.

    As in LLaVA, a first turn of gpt and a last one without an answer are left out.
    """
    given = row.get("conversations")
    if not isinstance(given, list) or not all(isinstance(turn, dict) for turn in given):
        raise BadSample(f'{name}: "conversations" must be a list of {{"from": ..., "value": ...}}')
    turns = [(str(turn.get("from")), str(turn.get("value", ""))) for turn in given]
    turns = turns[1:] if turns and turns[0][0] == ROLES[1] else turns
    turns = turns[:-1] if turns and turns[-1][0] == ROLES[0] else turns
    for number, (role, text) in enumerate(turns):
        if role != ROLES[number % 2]:
            raise BadSample(f"{name}: turn {number + 1} is of {role!r}, expected {ROLES[number % 2]!r}: they alternate")
        if not text and role == ROLES[1]:
            raise BadSample(f"{name}: turn {number + 1} is an empty answer")
    if not turns:
        raise BadSample(f"{name}: no question with an answer")
    return turns


def with_images_first(turns: Turns, images: int, name: str) -> Turns:
    """The turns with their placeholders as LLaVA trains: a turn's only one goes to its front, on a line of its own.

    Several in one turn stay where they are. Raises BadSample unless there are as many placeholders as images.
    """
    places = sum(text.count(DEFAULT_IMAGE_TOKEN) for _, text in turns)
    if places != images:
        raise BadSample(f"{name}: {places} {DEFAULT_IMAGE_TOKEN} placeholder(s) for {images} image(s)")

    def moved(text: str) -> str:
        if text.count(DEFAULT_IMAGE_TOKEN) != 1:
            return text
        return f"{DEFAULT_IMAGE_TOKEN}\n{text.replace(DEFAULT_IMAGE_TOKEN, '').strip()}".strip()

    return [(role, moved(text)) for role, text in turns]


def write_prompt(turns: Turns, template: Conversation, name: str) -> Prompt:
    """The conversation in the words of `template`, and where its answers are.

    An answer begins where a prompt for generation ends and goes on to the end of its end marker. "plain" (stage 1) is
    the images, the caption and a line's end, of which the caption and the line's end are learned.
    """
    if template.sep_style is SeparatorStyle.PLAIN:
        return _plain(turns, template, name)
    conversation, answers = template.copy(), []
    for role, text in turns:
        if role == ROLES[0]:
            conversation.append_message(conversation.roles[0], text)
            continue
        conversation.append_message(conversation.roles[1], None)
        start = len(conversation.get_prompt())
        conversation.messages[-1][1] = text
        prompt = conversation.get_prompt()
        # What follows an end marker is never generated; where a line's end is the marker itself, it stays.
        stays = not end_marker(template).strip()
        answers.append((start, len(prompt) if stays else len(prompt.rstrip())))
    return Prompt(prompt, answers)


def _plain(turns: Turns, template: Conversation, name: str) -> Prompt:
    if len(turns) != len(ROLES):
        raise BadSample(f"{name}: {len(turns)} turns, the template 'plain' takes an image and its caption")
    images = DEFAULT_IMAGE_TOKEN * turns[0][1].count(DEFAULT_IMAGE_TOKEN)
    if not images:
        raise BadSample(f"{name}: no {DEFAULT_IMAGE_TOKEN} in the first turn, which the template 'plain' is about")
    text = images + turns[1][1] + template.sep
    return Prompt(text, [(len(images), len(text))])


def end_marker(template: Conversation) -> str:
    """What the template writes behind an answer."""
    return template.sep2 or template.sep


def check_tokenizer(tokenizer: Any, template: Conversation, version: str) -> None:
    """Raises ValueError for a tokenizer without offsets, or one that does not know the template's end marker."""
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} does not say which characters a token stands for: training needs a tokenizer "
            "of the tokenizers library (tokenizer.json, or a tokenizer.model that transformers converts)"
        )
    marker = end_marker(template).strip()
    special = marker.startswith("<") and marker.endswith(">")
    ids = tokenizer(marker, add_special_tokens=False).input_ids
    if special and (len(ids) != 1 or ids[0] == tokenizer.unk_token_id):
        raise ValueError(
            f"--version {version} ends every answer with {marker!r}, which this tokenizer splits into {len(ids)}: "
            "choose the template that the language model was trained with"
        )


def tokenize(prompt: Prompt, tokenizer: Any, images: int, name: str) -> Tokens:
    """Ids as `tokenizer_image_token` makes them, and their labels; without images, a placeholder is plain text.

    Raises BadSample where a token lies across the border of an answer.
    """
    pieces = prompt.text.split(DEFAULT_IMAGE_TOKEN) if images else [prompt.text]
    ids: list[int] = []
    labels: list[int] = []
    start = 0
    for number, piece in enumerate(pieces):
        if number:
            ids.append(IMAGE_TOKEN_INDEX)
            labels.append(IGNORE_INDEX)
            start += len(DEFAULT_IMAGE_TOKEN)
        encoded = tokenizer(piece, return_offsets_mapping=True)
        found, offsets = encoded.input_ids, np.array(encoded.offset_mapping, dtype=np.int64).reshape(-1, 2)
        if number and found and found[0] == tokenizer.bos_token_id:
            found, offsets = found[1:], offsets[1:]
        learned = _learned(prompt, offsets + start, name)
        ids += found
        labels += np.where(learned, found, IGNORE_INDEX).tolist()
        start += len(piece)
    return Tokens(torch.tensor(ids), torch.tensor(labels))


def _learned(prompt: Prompt, offsets: np.ndarray, name: str) -> np.ndarray:
    """bool [S]: the tokens that lie in an answer. offsets: int [S, 2], characters of the whole prompt."""
    first, behind = offsets[:, 0], offsets[:, 1]
    learned = np.zeros(len(offsets), dtype=bool)
    for begin, end in prompt.answers:
        inside = (first >= begin) & (behind <= end) & (behind > first)
        across = (first < end) & (behind > begin) & ~inside & (behind > first)
        if across.any():
            a, b = offsets[int(across.argmax())]
            raise BadSample(
                f"{name}: label mismatch: the token {prompt.text[a:b]!r} lies across the border of the answer "
                f"{prompt.text[begin : begin + 20]!r}: the template (--version) does not fit the tokenizer"
            )
        learned |= inside
    return learned


def cut(tokens: Tokens, images: Sequence[int], limit: int, name: str) -> tuple[Tokens, int]:
    """(the tokens that fit into `limit` once every placeholder is an image of so many tokens, the images among them).

    images: visual tokens of each. Raises BadSample if no answer is left to learn.
    """
    widths = torch.ones_like(tokens.ids)
    widths[tokens.ids == IMAGE_TOKEN_INDEX] = torch.tensor(list(images), dtype=widths.dtype)
    fits = widths.cumsum(0) - widths < limit
    left = Tokens(tokens.ids[fits], tokens.labels[fits])
    if not bool((left.labels[1:] != IGNORE_INDEX).any()):
        raise BadSample(
            f"{name}: of {int(widths.sum())} tokens the first {limit} (--model_max_length) hold no answer to learn"
        )
    return left, int((left.ids == IMAGE_TOKEN_INDEX).sum())
