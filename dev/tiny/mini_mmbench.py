"""Write the embedded MMBench and MMBench-CN dev tables: `python -m dev.tiny.mini_mmbench`.

As in the official tables, every rotation of a question's options is a row of its own.
"""

from __future__ import annotations

import base64
import csv
import random
import re
from pathlib import Path

from dev.tiny.mini import command
from dev.tiny.mini_common import OPEN, Choice, encoded, scenes, with_options
from dev.tiny.questions import COUNT_WORDS
from llava.eval.engine.choices import LETTERS
from llava.eval.engine.circular import ROTATION

QUESTIONS = 12
FIRST_INDEX = 101
KINDS = {
    "color": ("attribute_recognition", "finegrained_perception (instance-level)"),
    "count": ("object_localization", "finegrained_perception (instance-level)"),
    "number": ("ocr", "finegrained_perception (instance-level)"),
    "side": ("spatial_relationship", "relation_reasoning"),
}
HEADER = ["index", "question", "hint", *LETTERS[:4], "answer", "category", "image", "source", "l2-category", "comment"]
WORDS_CN = {
    **{
        "red": "红色",
        "green": "绿色",
        "blue": "蓝色",
        "yellow": "黄色",
        "brown": "棕色",
        "teal": "青色",
        "gray": "灰色",
    },
    **{"black": "黑色", "circle": "圆形", "triangle": "三角形", "rectangle": "矩形", "star": "星形", "cross": "十字形"},
    **{"sign": "牌子", "left": "左边", "right": "右边"},
    **dict(zip(COUNT_WORDS, "零一二三四", strict=True)),
}
# English question -> Chinese one; the groups are translated word by word.
FORMS_CN = {
    r"What color is the (\w+)\?": "图中的{}是什么颜色？",
    r"How many shapes are there in the image\?": "图中有几个形状？",
    r"What number is on the (\w+) sign\?": "{}牌子上的数字是多少？",
    r"What number is on the sign\?": "牌子上的数字是多少？",
    r"On which side of the image is the (\w+)\?": "图中的{}在哪一边？",
}


def chinese(choice: Choice) -> Choice:
    """The same question and options in Chinese; numbers stay."""
    for form, text in FORMS_CN.items():
        if match := re.fullmatch(form, choice.text):
            question = text.format(*(WORDS_CN[word] for word in match.groups()))
            options = tuple(WORDS_CN.get(option, option) for option in choice.options)
            return Choice(choice.category, question, options, choice.answer)
    raise ValueError(f"no Chinese form of {choice.text!r}")


def rotations(index: int, choice: Choice, picture: bytes) -> list[list[str]]:
    """Table rows; the image is in the first one and the others name it."""
    category, ability = KINDS[choice.category]
    image = base64.b64encode(picture).decode()
    rows = []
    for turn in range(len(choice.options)):
        options = [*choice.options[turn:], *choice.options[:turn], "", "", ""][:4]
        answer = LETTERS[(choice.answer - turn) % len(choice.options)]
        cell = image if turn == 0 else str(index)
        place = str(index + turn * ROTATION)
        rows.append([place, choice.text, "", *options, answer, category, cell, "synthetic", ability, ""])
    return rows


def make(out: Path, rng: random.Random) -> None:
    """Both tables: `out` is the English one's folder, the Chinese one's is beside it."""
    streams = [scenes(rng, [OPEN[kind]]) for kind in KINDS]
    drawn = []
    for n in range(QUESTIONS):
        scene, (question,) = next(streams[n % len(streams)])
        drawn.append((FIRST_INDEX + n, with_options(question, rng), encoded(scene)))
    for folder, name, translate in (
        (out, "mmbench_dev_20230712.tsv", lambda choice: choice),
        (out.with_name("mmbench_cn"), "mmbench_dev_cn_20231003.tsv", chinese),
    ):
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / name).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, delimiter="\t", lineterminator="\n")
            writer.writerow(HEADER)
            for index, choice, picture in drawn:
                writer.writerows(rotations(index, translate(choice), picture))


if __name__ == "__main__":
    command({"mmbench": make}, __doc__)
