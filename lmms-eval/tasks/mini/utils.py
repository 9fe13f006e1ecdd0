"""The mini tasks' documents: the files of playground/data/mini as lmms-eval's own tasks expect them.

Prompts, metrics and aggregation are lmms-eval's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lmms_eval.tasks.mme.utils import mme_aggregate_results, mme_doc_to_text, mme_process_results
from lmms_eval.tasks.pope.utils import (
    pope_aggregate_accuracy,
    pope_aggregate_f1_score,
    pope_aggregate_precision,
    pope_aggregate_recall,
    pope_aggregate_yes_ratio,
    pope_doc_to_text,
    pope_process_results,
)
from lmms_eval.tasks.textvqa.utils import textvqa_doc_to_text, textvqa_process_results
from PIL import Image

__all__ = [
    "mme_aggregate_results",
    "mme_doc_to_text",
    "mme_process_results",
    "pope_aggregate_accuracy",
    "pope_aggregate_f1_score",
    "pope_aggregate_precision",
    "pope_aggregate_recall",
    "pope_aggregate_yes_ratio",
    "pope_doc_to_text",
    "pope_process_results",
    "textvqa_doc_to_text",
]

DATA = Path(__file__).resolve().parents[3] / "playground" / "data" / "mini"
MME = DATA / "MME" / "MME_Benchmark_release_version"
POPE_CATEGORIES = 3


def picture(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def mixed(dataset: Any, parts: int) -> Any:
    """An image's two questions of each of the equal `parts` in turn, so that the first ones stand for all of them."""
    size, pair = len(dataset) // parts, 2
    rows = [part * size + k + j for k in range(0, size, pair) for part in range(parts) for j in range(pair)]
    return dataset.select(rows)


def pope_docs(dataset: Any) -> Any:
    """POPE's own names -> lmms-eval's; the three categories are mixed."""
    return mixed(dataset, POPE_CATEGORIES).rename_columns({"text": "question", "label": "answer"})


def pope_doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    return [picture(DATA / "pope" / "val2014" / doc["image"])]


def mme_docs(dataset: Any) -> Any:
    """The question file's lines, with the answers of the images' own files; the subtasks are mixed."""
    return mixed(dataset, len(set(dataset["category"]))).map(_with_answer)


def _with_answer(row: dict[str, Any]) -> dict[str, Any]:
    question = row["text"].split("\n")[0]
    lines = (MME / row["image"]).with_suffix(".txt").read_text(encoding="utf-8").splitlines()
    return {"question": question, "answer": dict(line.split("\t") for line in lines)[question]}


def mme_doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    return [picture(MME / doc["image"])]


def textvqa_doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    return [picture(DATA / "textvqa" / "train_images" / f"{doc['image_id']}.jpg")]


def exact_match(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """VQA accuracy against ten answers, without lmms-eval's file for the challenge's server."""
    return {"exact_match": textvqa_process_results(doc, results)["exact_match"]}


def two_images_doc_to_visual(doc: dict[str, Any]) -> list[Image.Image]:
    return [picture(DATA / "two_images" / "images" / name) for name in doc["images"]]


def video_doc_to_visual(doc: dict[str, Any]) -> list[str]:
    return [str(DATA / "video" / "videos" / doc["video"])]


def question_with_request(doc: dict[str, Any], lmms_eval_specific_kwargs: dict[str, str]) -> str:
    return f"{doc['question']}{lmms_eval_specific_kwargs['post_prompt']}"


def first_answer(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """1 for the very answer, in whatever case."""
    return {"exact_match": float(results[0].strip().lower() == doc["answer"].lower())}
