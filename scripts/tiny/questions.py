"""Questions about a scene, with answers that only the picture gives (yes and no, left and right are balanced)."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass, replace

from scripts.tiny.world import COLORS, SHAPES, SIGN, Scene, Thing

SHORT_ANSWER = "Answer the question using a single word or phrase."
COUNT_WORDS = ("zero", "one", "two", "three", "four")
YES_NO_REQUEST = "Please answer yes or no."  # MME's ending
REQUEST_SHARE = 0.25
SIDE_MARGIN = 0.06  # an object this close to the middle is on no side


@dataclass(frozen=True)
class Question:
    category: str
    text: str
    answer: str


def prompt_of(question: str) -> str:
    """The user's turn as LLaVA's benchmark files write it."""
    return f"{question}\n{SHORT_ANSWER}"


def yes_no(value: bool) -> str:
    return "Yes" if value else "No"


def _name(thing: Thing) -> str:
    return f"{thing.color} {thing.kind}"


def ask_color(scene: Scene, rng: random.Random) -> Question | None:
    kinds = Counter(t.kind for t in scene.things)
    choices = [t for t in scene.things if kinds[t.kind] == 1]
    if not choices:
        return None
    thing = rng.choice(choices)
    return Question("color", f"What color is the {thing.kind}?", thing.color)


def ask_shape(scene: Scene, rng: random.Random) -> Question | None:
    colors = Counter(t.color for t in scene.things)
    choices = [t for t in scene.shapes if colors[t.color] == 1]
    if not choices:
        return None
    thing = rng.choice(choices)
    return Question("shape", f"What is the {thing.color} shape?", thing.kind)


def ask_number(scene: Scene, rng: random.Random) -> Question | None:
    if not scene.signs:
        return None
    sign = rng.choice(scene.signs)
    which = SIGN if len(scene.signs) == 1 and rng.random() < 0.6 else f"{sign.color} {SIGN}"
    return Question("number", f"What number is on the {which}?", sign.number)


def absent_thing(scene: Scene, rng: random.Random, how: str) -> tuple[str, str] | None:
    """(color, kind) that the scene lacks.

    `adversarial`: colour and kind both occur, but not together; `popular`: one of them occurs.
    """
    have = {(t.color, t.kind) for t in scene.things}
    colors, kinds = {c for c, _ in have}, {k for _, k in have}
    pairs = [(c, k) for c in COLORS for k in (*SHAPES, SIGN) if (c, k) not in have]
    if how == "adversarial":
        pairs = [p for p in pairs if p[0] in colors and p[1] in kinds]
    elif how == "popular":
        pairs = [p for p in pairs if (p[0] in colors) != (p[1] in kinds)]
    return rng.choice(pairs) if pairs else None


def ask_presence(
    scene: Scene, rng: random.Random, how: str | None = None, answer: bool | None = None
) -> Question | None:
    answer = rng.random() < 0.5 if answer is None else answer
    how = how or rng.choice(("random", "popular", "adversarial"))
    if not answer:
        pair = absent_thing(scene, rng, how)
        return pair and Question("presence", f"Is there a {pair[0]} {pair[1]} in the image?", "No")
    if not scene.things:
        return None
    return Question("presence", f"Is there a {_name(rng.choice(scene.things))} in the image?", "Yes")


def ask_kind_presence(scene: Scene, rng: random.Random, answer: bool | None = None) -> Question | None:
    answer = rng.random() < 0.5 if answer is None else answer
    present = {t.kind for t in scene.things}
    choices = [k for k in (*SHAPES, SIGN) if (k in present) == answer]
    if not choices:
        return None
    return Question("existence", f"Is there a {rng.choice(choices)} in the image?", yes_no(answer))


def ask_count(scene: Scene, rng: random.Random, answer: bool | None = None) -> Question | None:
    """How many shapes: signs do not count."""
    count = len(scene.shapes)
    if answer is None and rng.random() < 0.5:
        return Question("count", "How many shapes are there in the image?", COUNT_WORDS[count])
    answer = rng.random() < 0.5 if answer is None else answer
    asked = count if answer else rng.choice([n for n in range(1, len(COUNT_WORDS)) if n != count])
    if asked == 0:
        return None
    return Question("count", f"Is the number of shapes in the image {COUNT_WORDS[asked]}?", yes_no(answer))


def ask_position(scene: Scene, rng: random.Random, answer: bool | None = None) -> Question | None:
    kinds = Counter(t.kind for t in scene.things)
    choices = [t for t in scene.things if kinds[t.kind] == 1 and abs(t.x - 0.5) > SIDE_MARGIN]
    if not choices:
        return None
    thing = rng.choice(choices)
    answer = rng.random() < 0.5 if answer is None else answer
    side = "left" if (thing.x < 0.5) == answer else "right"
    return Question("position", f"Is the {thing.kind} on the {side} side of the image?", yes_no(answer))


def ask_ocr(scene: Scene, rng: random.Random, answer: bool | None = None) -> Question | None:
    if len(scene.signs) != 1:
        return None
    number = scene.signs[0].number
    answer = rng.random() < 0.5 if answer is None else answer
    asked = number if answer else rng.choice([str(n) for n in range(10, 100) if str(n) != number])
    return Question("ocr", f"Is the number on the sign {asked}?", yes_no(answer))


def ask_easy(scene: Scene, rng: random.Random) -> Question | None:
    """Questions worded as in easy-VQA (lower case, negations), about a scene with one shape."""
    if len(scene.shapes) != 1 or scene.signs:
        return None
    thing = scene.shapes[0]
    pick = rng.random()
    if pick < 0.15:
        return Question("easy", f"what is the {thing.color} shape?", thing.kind)
    if pick < 0.35:
        noun = rng.choice(("shape", thing.kind))
        form = rng.choice(("what is the color of the {}?", "what color is the {}?"))
        return Question("easy", form.format(noun), thing.color)
    present = rng.random() < 0.5
    if rng.random() < 0.5:
        color = thing.color if present else rng.choice([c for c in COLORS if c != thing.color])
        noun = f"{color} shape"
    else:
        noun = thing.kind if present else rng.choice([s for s in SHAPES if s != thing.kind])
    plain = ("is there a {}?", "is there a {} in the image?", "does the image contain a {}?", "is a {} present?")
    negated = (
        "is there not a {}?",
        "is there not a {} in the image?",
        "does the image not contain a {}?",
        "is no {} present?",
    )
    negate = rng.random() < 0.5
    text = rng.choice(negated if negate else plain).format(noun)
    return Question("easy", text, yes_no(present != negate))


ASKERS = (
    (ask_color, 2.0),
    (ask_shape, 1.5),
    (ask_number, 2.5),
    (ask_presence, 2.5),
    (ask_kind_presence, 1.0),
    (ask_count, 1.5),
    (ask_position, 1.5),
    (ask_ocr, 1.0),
    (ask_easy, 6.0),
)


def sample_questions(scene: Scene, rng: random.Random, number: int) -> list[Question]:
    """`number` questions of mixed kinds about one scene."""
    askers, weights = zip(*ASKERS, strict=True)
    questions: list[Question] = []
    while len(questions) < number:
        question = rng.choices(askers, weights)[0](scene, rng)
        if question is None:
            continue
        if question.answer in ("Yes", "No") and question.category != "easy" and rng.random() < REQUEST_SHARE:
            question = replace(question, text=f"{question.text} {YES_NO_REQUEST}")
        questions.append(question)
    return questions
