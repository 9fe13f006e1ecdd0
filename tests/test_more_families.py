"""Qwen3-VL and LLaVA-OneVision: random models of transformers' classes, against loops written out."""

from __future__ import annotations

import logging

import pytest
import torch
from qwen_golden import IMAGE, VIDEO, batch, cache_lengths, prompt
from qwen_reference import STEPS, answer, reference, visual
from transformers import (
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Qwen2Config,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    SiglipVisionConfig,
)

import dart

WANTED = {"atol": 1e-4, "rtol": 0}
VOCABULARY = 352
TEXT = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "max_position_embeddings": 512,
}
DEEPSTACK = [0, 1, 2]
KEEP = dart.DartConfig(keep=0.4, image_pivots=2, text_pivots=2, layer=len(DEEPSTACK))


def qwen3(attention="sdpa"):
    torch.manual_seed(0)
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True}
    vision = {
        "depth": 4,
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_heads": 2,
        "patch_size": 14,
        "out_hidden_size": 32,
        "num_position_embeddings": 64,
        "deepstack_visual_indexes": DEEPSTACK,
        "initializer_range": 0.2,
    }
    config = Qwen3VLConfig(
        text_config=TEXT | {"head_dim": 8, "rope_parameters": rope},
        vision_config=vision,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )
    model = Qwen3VLForConditionalGeneration(config).eval()
    model.set_attn_implementation(attention)
    return model


FRAMES = prompt(4, ("video", 1, 8, 8), 3, ("video", 1, 8, 8), 6, seed=4)  # one video of two frames with timestamps
ROWS = {
    "two pictures": prompt(3, ("image", 1, 12, 8), 4, ("image", 1, 16, 6), 8, seed=2),
    "video": FRAMES | {"video_grid_thw": torch.tensor([[2, 8, 8]])},
    "text": prompt(21, seed=6),
}


def deepstack(model, row):
    """Features [visual, D] per depth."""
    encode = model.model.get_video_features if "pixel_values_videos" in row else model.model.get_image_features
    names = (
        ("pixel_values_videos", "video_grid_thw")
        if "pixel_values_videos" in row
        else ("pixel_values", "image_grid_thw")
    )
    with torch.no_grad():
        depths = encode(*(row[name] for name in names), return_dict=True).deepstack_features
    # One tensor a picture, or (older transformers) all pictures in one.
    return [depth if isinstance(depth, torch.Tensor) else torch.cat(list(depth)) for depth in depths]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["two pictures", "video"])
def test_qwen3_follows_the_written_out_decoder(attention, name):
    model, row = qwen3(attention), ROWS[name]
    with dart.prune(model, KEEP) as handle:
        tokens, logits, cache = answer(model, row)
        report = handle.last
    assert report.visual_after[0] < 0.6 * report.visual_before[0]
    added = deepstack(model, row)
    target = reference(model, row, report.kept[0], tokens[0, :-1], KEEP.layer, added)[-STEPS:]
    torch.testing.assert_close(logits[0], target, **WANTED)
    without = reference(model, row, report.kept[0], tokens[0, :-1], KEEP.layer)[-STEPS:]
    assert (without - target).abs().max() > 1e-2, "DeepStack matters in this test"
    full, short = report.tokens_before + STEPS - 1, report.tokens_after + STEPS - 1
    assert cache_lengths(cache) == [full] * 3 + [short] * 2


def test_qwen3_prunes_behind_the_last_deepstack_layer_and_says_so(caplog):
    model = qwen3()
    with caplog.at_level(logging.WARNING), dart.prune(model, dart.DartConfig(keep=0.4)) as handle:
        answer(model, ROWS["two pictures"])
    assert handle.config.layer == handle.last.layer == 3
    assert "layer=2 is raised" in caplog.text


def test_qwen3_quota_for_each_frame():
    model = qwen3()
    with torch.no_grad(), dart.prune(model, KEEP) as handle:
        model(**ROWS["video"])
    spans = handle.family.visual_span_ids(model, ROWS["video"])[0]
    kept = spans[handle.last.kept[0]]
    assert [int((kept == frame).sum()) for frame in (1, 2)] == [KEEP.num_kept(16)] * 2


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_qwen3_mixed_batch_equals_each_row_alone(attention):
    model = qwen3(attention)
    with dart.prune(model, KEEP):
        alone = [answer(model, row) for row in ROWS.values()]
        tokens, logits, _ = answer(model, batch(*ROWS.values()))
    for number, (single_tokens, single_logits, _) in enumerate(alone):
        torch.testing.assert_close(logits[number], single_logits[0], **WANTED)
        assert tokens[number].tolist() == single_tokens[0].tolist()


def onevision(attention="sdpa"):
    torch.manual_seed(0)
    vision = SiglipVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=24,
        patch_size=4,
        vision_use_head=False,
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=Qwen2Config(**TEXT),
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        image_grid_pinpoints=[[24, 48], [48, 24], [48, 48]],
    )
    model = LlavaOnevisionForConditionalGeneration(config).eval()
    model.set_attn_implementation(attention)
    return model


def tiled(size, tiles, tokens, text, seed):
    """One picture of [1 + tiles] views, `tokens` placeholders, between text."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(4, 320, (2, text), generator=generator)
    ids = torch.cat([words[0], torch.full((tokens,), IMAGE), words[1]])[None]
    pixels = torch.randn(1, 1 + tiles, 3, 24, 24, generator=generator)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels,
        "image_sizes": torch.tensor([size]),
    }


# 24 x 48 pixels: the overview's 36, then 6 rows of 12 and a newline each.
WIDE = tiled((24, 48), 2, 36 + 6 * 13, 7, seed=1)
SMALLER = tiled((24, 48), 2, 36 + 6 * 13, 4, seed=2)


@torch.no_grad()
def onevision_reference(model, row, kept, layer):
    """Logits [n, V] of a prompt."""
    decoder, ids = model.model.language_model, row["input_ids"]
    features = model.model.get_image_features(row["pixel_values"], row["image_sizes"], return_dict=True).pooler_output
    hidden = decoder.embed_tokens(ids).masked_scatter((ids == IMAGE)[..., None], torch.cat(list(features)))
    seen = torch.arange(ids.shape[1])
    rope = decoder.rotary_emb(hidden, seen[None])
    keep = torch.cat([(~visual(ids[0])).nonzero().flatten(), kept]).sort().values
    for number, block in enumerate(decoder.layers):
        if number == layer:
            hidden, seen, rope = hidden[:, keep], keep, tuple(part[:, keep] for part in rope)
        blocked = seen[None, :] > seen[:, None]
        mask = torch.zeros(blocked.shape).masked_fill(blocked, torch.finfo(torch.float32).min)[None, None]
        hidden = block(hidden, attention_mask=mask, position_embeddings=rope)
    return model.lm_head(decoder.norm(hidden))[0]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_onevision_follows_the_written_out_decoder(attention, layer):
    model = onevision(attention)
    with dart.prune(model, dart.DartConfig(keep=30, layer=layer)) as handle:
        logits = model(**WIDE).logits[0]
    assert handle.last.visual_before == [114] and handle.last.visual_after == [28]
    torch.testing.assert_close(logits, onevision_reference(model, WIDE, handle.last.kept[0], layer), **WANTED)


def test_onevision_left_padded_batch_equals_each_row_alone():
    model = onevision()
    both = batch(WIDE | {"mm_token_type_ids": WIDE["input_ids"]}, SMALLER | {"mm_token_type_ids": SMALLER["input_ids"]})
    both.pop("mm_token_type_ids")
    both["image_sizes"] = torch.cat([WIDE["image_sizes"], SMALLER["image_sizes"]])
    with dart.prune(model, dart.DartConfig(keep=30)):
        alone = [answer(model, row)[1][0] for row in (WIDE, SMALLER)]
        together = answer(model, both)[1]
    torch.testing.assert_close(together, torch.stack(alone), **WANTED)
