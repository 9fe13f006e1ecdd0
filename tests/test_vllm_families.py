"""Families with random checkpoints of their own, in vLLM beside transformers; one engine at a time. `make test-vllm`.

`dart.prune` moves Qwen3-VL's layer 0 behind the layers that get features of their own, and leaves kept tokens of
InternVL their places: the reference here takes rows out of what transformers gives its first layer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_checkpoints
import torch
from transformers.video_utils import VideoMetadata
from vllm_beside import ANSWER, Expected, Served, picture, same, settings

QUESTION = "What number is on the blue sign?"
QWEN3_IMAGE, QWEN3_VIDEO = (
    "<|vision_start|><|image_pad|><|vision_end|>",
    "<|vision_start|><|video_pad|><|vision_end|>",
)
BUDGETS = [None, {"keep": 0.222}, {"keep": 0.4, "strategy": "divprune"}, {"keep": 0.3, "strategy": "spread"}]
PICTURES, FRAMES = 8, 4  # of a video: two pictures are one frame of Qwen3-VL's
SEVENTEEN = [5, 4, 4, 4]  # tokens of four frames of one size
HEAD = 32  # channels: the fewest of vLLM's attention on CPUs


def expected(served: Served, inputs: Any, asked: list[Any], places: bool) -> Expected:
    """Greedy tokens and log-probabilities of transformers, without a cache, after rows were taken out of what its first
    layer gets. asked: per run of visual tokens; places: do tokens keep their places of the unpruned prompt?"""
    seen: list[dict[str, Any]] = []
    model = served.model
    decoder = model.model.language_model
    hook = decoder.register_forward_pre_hook(lambda _, args, kwargs: seen.append(kwargs), with_kwargs=True)
    with torch.no_grad():
        model(**inputs)
    hook.remove()
    (given,) = seen
    ids, embeds = inputs["input_ids"][0], given["inputs_embeds"]
    visual = torch.isin(ids, torch.tensor([model.config.image_token_id, getattr(model.config, "video_token_id", -1)]))
    where = visual.nonzero().flatten()
    runs = where.tensor_split((where.diff() > 1).nonzero().flatten() + 1)
    stays = ~visual
    for run, wanted in zip(runs, asked, strict=True):
        stays[run[settings.chosen(embeds[0, run], settings.config_of(wanted))]] = True
    kept = {"inputs_embeds": embeds[:, stays]}
    if places:
        kept["position_ids"] = given["position_ids"][-3:, :, stays]
    deep = [each[stays[visual]] for each in given.get("deepstack_visual_embeds") or []]
    tokens, scores = [], []
    for _ in range(ANSWER):
        length = kept["inputs_embeds"].shape[1]
        more = {"attention_mask": torch.ones(1, length, dtype=torch.long)}
        if deep:
            late = torch.zeros(length - int(stays.sum()), dtype=torch.bool)
            more |= {"visual_pos_masks": torch.cat([visual[stays], late])[None], "deepstack_visual_embeds": deep}
        with torch.no_grad():
            hidden = decoder(**kept, **more, use_cache=False).last_hidden_state
            scores.append(model.lm_head(hidden[:, -1]).log_softmax(-1))
            tokens.append(int(scores[-1].argmax()))
            answer = decoder.get_input_embeddings()(torch.tensor([[tokens[-1]]]))
        kept["inputs_embeds"] = torch.cat([kept["inputs_embeds"], answer], 1)
        if places:
            kept["position_ids"] = torch.cat([kept["position_ids"], kept["position_ids"].max(-1, True).values + 1], -1)
    return tokens, torch.cat(scores), int(stays.sum())


@pytest.fixture(scope="module")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("qwen3")
    tiny_checkpoints.qwen3_vl(folder, HEAD)
    served = Served(folder, "{}{} It is", QWEN3_IMAGE, enable_mm_embeds=True)
    yield served
    served.close()


@pytest.mark.parametrize("asked", [*BUDGETS, {"keep": 20}], ids=str)
def test_qwen3s_tokens_bring_what_is_added_behind_the_first_layers(qwen3: Served, asked: Any) -> None:
    cases = [[picture(1, (280, 308))], [picture(2, (140, 392)), picture(3, (252, 252))]]  # upright and not
    answers = qwen3.ask([qwen3.request(images, QUESTION, asked) for images in cases])
    for answer, images in zip(answers, cases, strict=True):
        inputs = qwen3.processor(text=[qwen3.text(images, QUESTION)], images=images, return_tensors="pt")
        same(answer, expected(qwen3, inputs, [asked] * len(images), places=True))


@pytest.mark.parametrize("asked", [*BUDGETS, {"keep": sum(SEVENTEEN)}], ids=str)
def test_a_video_of_qwen3_shares_its_budget_over_its_frames(qwen3: Served, asked: Any) -> None:
    frames = np.stack([np.asarray(picture(number, (140, 196))) for number in range(1, PICTURES + 1)])
    known = {"fps": 2.0, "total_num_frames": PICTURES, "duration": PICTURES / 2, "video_backend": "none"}
    known["frames_indices"] = list(range(PICTURES))
    text = qwen3.prompt.format(QWEN3_VIDEO, QUESTION)
    inputs = qwen3.processor(
        text=[text], videos=[frames], video_metadata=[VideoMetadata(**known)], do_sample_frames=False,
        return_tensors="pt",
    )  # fmt: skip
    request = {"prompt": text, "multi_modal_data": {"video": [(frames, known | {"do_sample_frames": False})]}}
    (answer,) = qwen3.ask([request | ({} if asked is None else {"mm_processor_kwargs": {"dart": asked}})])
    same(answer, expected(qwen3, inputs, of_frames(asked), places=True))


def of_frames(asked: Any) -> list[Any]:
    whole = asked is not None and isinstance(asked["keep"], int)
    return [{"keep": count} for count in SEVENTEEN] if whole else [asked] * FRAMES


def test_embeddings_that_come_ready_are_refused(qwen3: Served) -> None:
    images = [picture(1, (280, 308))]
    inputs = qwen3.processor(text=[qwen3.text(images, QUESTION)], images=images, return_tensors="pt")
    grid = inputs["image_grid_thw"]
    with torch.no_grad():
        out = qwen3.model.model.visual(inputs["pixel_values"], grid_thw=grid)
    ready = {"image_embeds": torch.cat([out.pooler_output, *out.deepstack_features], 1), "image_grid_thw": grid}
    request = {"prompt": qwen3.text(images, QUESTION), "multi_modal_data": {"image": ready}}
    with pytest.raises(ValueError, match="ready-made embeddings"):
        qwen3.ask([request | {"mm_processor_kwargs": {"dart": {"keep": 0.5}}}])
    (answer,) = qwen3.ask([request])
    same(answer, expected(qwen3, inputs, [None], places=True))


def test_internvls_tiles_are_one_image(tmp_path: Path) -> None:
    tiny_checkpoints.internvl(tmp_path, num_attention_heads=1, num_key_value_heads=1)
    served = Served(tmp_path, "{}{} It is", "<IMG_CONTEXT>")
    try:
        cases: list[tuple[list[Any], Any]] = [
            ([picture(1, (48, 24))], None),
            ([picture(2, (24, 24)), picture(3, (24, 72))], {"keep": 0.3, "strategy": "spread"}),
            ([picture(4, (48, 48)), picture(5, (24, 24))], {"keep": 8}),
        ]
        answers = served.ask([served.request(images, QUESTION, asked) for images, asked in cases])
        for answer, (images, asked) in zip(answers, cases, strict=True):
            inputs = served.processor(text=[served.text(images, QUESTION)], images=images, return_tensors="pt")
            same(answer, expected(served, inputs, [asked] * len(images), places=False))
        frames = np.stack([np.asarray(picture(number, (24, 24))) for number in range(1, FRAMES + 1)])
        text = served.prompt.format("<video>", QUESTION)
        inputs = served.processor(text=[text], videos=[frames], do_sample_frames=False, return_tensors="pt")
        for asked in (None, {"keep": 0.3}, {"keep": sum(SEVENTEEN)}):
            request = {"prompt": text, "multi_modal_data": {"video": frames}}
            (answer,) = served.ask([request | ({} if asked is None else {"mm_processor_kwargs": {"dart": asked}})])
            same(answer, expected(served, inputs, of_frames(asked), places=False))
    finally:
        served.close()


def test_pixtral_has_llavas_name_and_is_refused(tmp_path: Path) -> None:
    tiny_checkpoints.pixtral(tmp_path, num_attention_heads=1, num_key_value_heads=1, head_dim=HEAD)
    served = Served(tmp_path, "{}{} It is", "[IMG]")
    try:
        images = [picture(1, (60, 36))]
        with pytest.raises(ValueError, match="is no family that the plugin prunes"):
            served.ask([served.request(images, QUESTION, {"keep": 0.5})])
        (answer,) = served.ask([served.request(images, QUESTION)])
        same(answer, served.expected(images, QUESTION))
    finally:
        served.close()


@pytest.mark.parametrize(
    ("part", "option"),
    [
        ("compilation_config", {"cudagraph_mm_encoder": True}),
        ("parallel_config", {"pipeline_parallel_size": 2}),
        ("parallel_config", {"enable_dbo": True}),
        ("multimodal_config", {"video_pruning_rate": 0.5}),
    ],
)
def test_an_engine_that_cannot_be_is_refused_before_its_model_is_built(part: str, option: dict[str, Any]) -> None:
    from dart_vllm import seam

    parts: dict[str, dict[str, Any]] = {
        "compilation_config": {},
        "parallel_config": {"pipeline_parallel_size": 1},
        "multimodal_config": {},
    }
    parts[part] |= option
    config = SimpleNamespace(**{name: SimpleNamespace(**values) for name, values in parts.items()})
    config.model_config = SimpleNamespace(multimodal_config=config.multimodal_config)
    models = [seam.PrunedQwen2_5VL] + ([seam.PrunedLlava] if part == "compilation_config" else [])
    for model in models:
        with pytest.raises(ValueError, match=next(iter(option)).split("_")[0]):
            model(vllm_config=config)
