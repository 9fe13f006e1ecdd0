"""Write questions about one of two images, and about short videos: `python -m dev.tiny.mini_several`.

lmms-eval's tasks two_images_mini and video_mini (lmms-eval/tasks/mini) read them. Needs the package av.
"""

from __future__ import annotations

import random
from pathlib import Path

import av

from dev.tiny.mini import command
from dev.tiny.mini_common import encoded, scenes, write_bytes
from dev.tiny.questions import Question, ask_color
from dev.tiny.several import PICTURES, VIDEO, drift, sample_question
from llava.eval.engine.answers import write_lines
from llava.eval.probe.drawing import Scene, render

PAIRS, CLIPS, QUESTIONS_PER_CLIP = 30, 30, 2
FRAMES_PER_SECOND = 2  # at which Qwen's reader samples: it takes every frame
QUALITY = {"crf": "20", "preset": "slow"}


def make_two_images(out: Path, rng: random.Random) -> None:
    """A question about each image of a pair."""
    stream, rows = scenes(rng, [ask_color]), []
    for n in range(PAIRS):
        pair = [next(stream)[0] for _ in PICTURES]
        names = [f"pair_{n:02d}_{side}.jpg" for side in ("first", "second")]
        for scene, name in zip(pair, names, strict=True):
            write_bytes(out / "images" / name, encoded(scene))
        for scene, where in zip(pair, PICTURES, strict=True):
            question = sample_question(scene, where, rng)
            rows.append(
                {
                    "question_id": len(rows),
                    "images": names,
                    "question": question.text,
                    "answer": question.answer,
                    "category": question.category,
                }
            )
    write_lines(out / "questions.jsonl", rows)


def make_video(out: Path, rng: random.Random) -> None:
    """Clips of a few frames, whose things drift."""
    stream, rows = scenes(rng, [ask_color]), []
    for n in range(CLIPS):
        scene = next(stream)[0]
        name = f"clip_{n:02d}.mp4"
        write_clip(drift(scene, rng), out / "videos" / name)
        for question in distinct_questions(scene, rng):
            rows.append(
                {
                    "question_id": len(rows),
                    "video": name,
                    "question": question.text,
                    "answer": question.answer,
                    "category": question.category,
                }
            )
    write_lines(out / "questions.jsonl", rows)


def distinct_questions(scene: Scene, rng: random.Random) -> list[Question]:
    """QUESTIONS_PER_CLIP of them."""
    found: dict[str, Question] = {}
    while len(found) < QUESTIONS_PER_CLIP:
        question = sample_question(scene, VIDEO, rng)
        found[question.text] = question
    return list(found.values())


def write_clip(frames: list[Scene], path: Path) -> None:
    """An H.264 file of the frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as clip:
        stream = clip.add_stream("libx264", rate=FRAMES_PER_SECOND, options=QUALITY)
        stream.width, stream.height = frames[0].size
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            clip.mux(stream.encode(av.VideoFrame.from_image(render(frame))))
        clip.mux(stream.encode())


MAKERS = {"two_images": make_two_images, "video": make_video}

if __name__ == "__main__":
    command(MAKERS, __doc__)
