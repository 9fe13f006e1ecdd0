"""The embedded model's answers in left-padded batches are those of single questions, in float32."""

import argparse
import json

import pytest

from llava.eval import tasks
from llava.eval.engine import loop
from llava.files import EMBEDDED_DATA, EMBEDDED_MODEL

STEP = 3  # every third question of TextVQA-mini
BATCH = 8


def arguments(answers, *more):
    parser = argparse.ArgumentParser()
    loop.add_loop_arguments(parser, files=False)
    model = ["--model-path", str(EMBEDDED_MODEL), "--device", "cpu", "--torch-dtype", "float32"]
    args = parser.parse_args([*model, "--answers-file", str(answers), *more])
    args.question_file = "textvqa"
    return args


@pytest.fixture(scope="module")
def loaded(tmp_path_factory):
    return loop.load(arguments(tmp_path_factory.mktemp("any") / "a.jsonl"))


@pytest.mark.parametrize("flags", [[], ["--sparse", "--max_num_trunction", "64"]], ids=["unpruned", "dart"])
def test_batches_equal_single_questions(loaded, tmp_path, flags):
    examples = tasks.get("textvqa").examples(EMBEDDED_DATA)[::STEP]
    lengths = {len(loaded.tokenizer(e.text).input_ids) for e in examples}
    assert len(lengths) > 1, "equal lengths would need no padding"
    files = []
    for size in (1, BATCH):
        files.append(tmp_path / f"{size}.jsonl")
        loop.run(arguments(files[-1], *flags, "--batch-size", str(size)), loaded, examples)
    assert files[0].read_bytes() == files[1].read_bytes()
    assert len({json.loads(line)["text"] for line in files[0].read_text().splitlines()}) > BATCH
