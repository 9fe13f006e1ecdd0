"""Questions about a scene, with answers that only the image gives (yes and no, left and right are balanced)."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from llava.eval.probe.drawing import COLORS, SHAPES, SIGN, Scene, Thing

SHORT_ANSWER = "Answer the question using a single word or phrase."
COUNT_WORDS = ("zero", "one", "two", "three", "four")
YES_NO_REQUEST = "Please answer yes or no."  # MME's ending
REQUEST_SHARE = 0.25
SIDE_MARGIN = 0.06  # an object this close to the middle is on no side


@dataclass(frozen=True)
class Question:
    """`about`: the things of the scene (indices) to look at for the answer, () = none of them has it, None = no say.

    `request`: the line below the question that says how to answer.
    """

    category: str
    text: str
    answer: str
    about: tuple[int, ...] | None = None
    request: str = SHORT_ANSWER


def prompt_of(question: str, request: str = SHORT_ANSWER) -> str:
    """The user's turn as LLaVA's benchmark files write it."""
    return f"{question}\n{request}"


def yes_no(value: bool) -> str:
    return "Yes" if value else "No"


def _where(scene: Scene, holds: Callable[[Thing], bool]) -> tuple[int, ...]:
    return tuple(k for k, thing in enumerate(scene.things) if holds(thing))


def _name(thing: Thing) -> str:
    return f"{thing.color} {thing.kind}"


def ask_color(scene: Scene, rng: random.Random) -> Question | None:
    kinds = Counter(t.kind for t in scene.things)
    choices = [t for t in scene.things if kinds[t.kind] == 1]
    if not choices:
        return None
    thing = rng.choice(choices)
    return Question("color", f"What color is the {thing.kind}?", thing.color, (scene.things.index(thing),))


def ask_shape(scene: Scene, rng: random.Random) -> Question | None:
    colors = Counter(t.color for t in scene.things)
    choices = [t for t in scene.shapes if colors[t.color] == 1]
    if not choices:
        return None
    thing = rng.choice(choices)
    return Question("shape", f"What is the {thing.color} shape?", thing.kind, (scene.things.index(thing),))


def ask_number(scene: Scene, rng: random.Random) -> Question | None:
    if not scene.signs:
        return None
    sign = rng.choice(scene.signs)
    which = SIGN if len(scene.signs) == 1 and rng.random() < 0.6 else f"{sign.color} {SIGN}"
    return Question("number", f"What number is on the {which}?", sign.number, (scene.things.index(sign),))


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
        return pair and Question("presence", f"Is there a {pair[0]} {pair[1]} in the image?", "No", ())
    if not scene.things:
        return None
    thing = rng.choice(scene.things)
    same = _where(scene, lambda t: (t.color, t.kind) == (thing.color, thing.kind))
    return Question("presence", f"Is there a {_name(thing)} in the image?", "Yes", same)


def ask_kind_presence(scene: Scene, rng: random.Random, answer: bool | None = None) -> Question | None:
    answer = rng.random() < 0.5 if answer is None else answer
    present = {t.kind for t in scene.things}
    choices = [k for k in (*SHAPES, SIGN) if (k in present) == answer]
    if not choices:
        return None
    kind = rng.choice(choices)
    same = _where(scene, lambda t: t.kind == kind)
    return Question("existence", f"Is there a {kind} in the image?", yes_no(answer), same)


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
    same = (scene.things.index(thing),)
    return Question("position", f"Is the {thing.kind} on the {side} side of the image?", yes_no(answer), same)


def ask_side(scene: Scene, rng: random.Random) -> Question | None:
    """The open form of `ask_position`, for training: seeing a side comes before agreeing with one."""
    kinds = Counter(t.kind for t in scene.things)
    choices = [t for t in scene.things if kinds[t.kind] == 1 and abs(t.x - 0.5) > SIDE_MARGIN]
    if not choices:
        return None
    thing = rng.choice(choices)
    side = "left" if thing.x < 0.5 else "right"
    return Question("side", f"On which side of the image is the {thing.kind}?", side, (scene.things.index(thing),))


def ask_ocr(scene: Scene, rng: random.Random, answer: bool | None = None) -> Question | None:
    if len(scene.signs) != 1:
        return None
    sign = scene.signs[0]
    number = sign.number
    answer = rng.random() < 0.5 if answer is None else answer
    asked = number if answer else rng.choice([str(n) for n in range(10, 100) if str(n) != number])
    return Question("ocr", f"Is the number on the sign {asked}?", yes_no(answer), (scene.things.index(sign),))


def ask_easy(scene: Scene, rng: random.Random) -> Question | None:
    """Questions worded as in easy-VQA (lower case, negations), about a scene with one shape."""
    if len(scene.shapes) != 1 or scene.signs:
        return None
    thing = scene.shapes[0]
    pick = rng.random()
    if pick < 0.15:
        return Question("easy", f"what is the {thing.color} shape?", thing.kind, (0,))
    if pick < 0.35:
        noun = rng.choice(("shape", thing.kind))
        form = rng.choice(("what is the color of the {}?", "what color is the {}?"))
        return Question("easy", form.format(noun), thing.color, (0,))
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
    return Question("easy", text, yes_no(present != negate), (0,) if present else ())


ASKERS = {
    "color": (ask_color, 2.0),
    "shape": (ask_shape, 1.5),
    "number": (ask_number, 2.5),
    "presence": (ask_presence, 2.5),
    "existence": (ask_kind_presence, 1.0),
    "count": (ask_count, 1.5),
    "side": (ask_side, 1.0),
    "position": (ask_position, 1.5),
    "ocr": (ask_ocr, 2.0),
    "easy": (ask_easy, 6.0),
}


class Mix:
    """Which kinds of questions to ask: those that the model still gets wrong, and a few of the others."""

    FLOOR, MEMORY = 0.15, 0.98

    def __init__(self) -> None:
        self.right = dict.fromkeys(ASKERS, 0.0)

    def weights(self) -> list[float]:
        return [weight * max(self.FLOOR, 1 - self.right[name]) for name, (_, weight) in ASKERS.items()]

    def learn(self, categories: list[str], right: list[bool]) -> None:
        """A batch's outcome: one entry per question."""
        for name in set(categories):
            own = [r for c, r in zip(categories, right, strict=True) if c == name]
            self.right[name] = self.MEMORY * self.right.get(name, 0.0) + (1 - self.MEMORY) * sum(own) / len(own)


def sample_questions(scene: Scene, rng: random.Random, number: int, mix: Mix) -> list[Question]:
    """`number` questions of mixed kinds about one scene."""
    askers, weights = [ask for ask, _ in ASKERS.values()], mix.weights()
    questions: list[Question] = []
    while len(questions) < number:
        question = rng.choices(askers, weights)[0](scene, rng)
        if question is None:
            continue
        if question.answer in ("Yes", "No") and question.category != "easy" and rng.random() < REQUEST_SHARE:
            question = replace(question, text=f"{question.text} {YES_NO_REQUEST}")
        questions.append(question)
    return questions
