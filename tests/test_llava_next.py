"""LLaVA-NeXT beyond the original: several pictures, batches, quotas per tile, other language models, transformers."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from llava_golden import GOLDEN, cache_lengths
from llava_next_golden import DART, IMAGE_START, RECORD, RUNS, loaded, sample, tensors
from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor

import dart
from dart.families import llava_next
from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import get_template
from llava.mm_utils import load_image, process_images
from llava.model import LlavaMistralForCausalLM, LlavaQwenForCausalLM
from llava.model.anyres import merge_tiles, view_ids
from llava.model.builder import load_pretrained_model

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))
from convert_llava_to_hf import convert_model  # noqa: E402 - the scripts folder is no package
from convert_llava_to_hf import main as convert  # noqa: E402

TOLERANCE = 1e-4
IMAGE_ID = 406
GREEDY = {"do_sample": False, "max_new_tokens": 5, "min_new_tokens": 5}


@pytest.fixture(params=["off", "joint", "span"])
def model(request):
    model = loaded()[1]
    model.config.DART_config = None if request.param == "off" else {**DART, "scope": request.param}
    yield model
    model.config.DART_config = None
    assert model.dart_handle is None


def both_in_a_batch():
    """Left-padded prompts with the wide and the tall picture."""
    (wide, wide_pixels, wide_size), (tall, tall_pixels, tall_size) = sample("wide"), sample("tall")
    gap = torch.zeros(1, wide.shape[1] - tall.shape[1], dtype=torch.long)
    mask = torch.cat([torch.ones_like(wide), torch.cat([gap, torch.ones_like(tall)], 1)])
    ids = torch.cat([wide, torch.cat([gap, tall], 1)])
    return ids, mask, [wide_pixels[0], tall_pixels[0]], wide_size + tall_size


@torch.no_grad()
def test_a_batch_of_two_sizes_equals_each_alone(model):
    ids, mask, images, sizes = both_in_a_batch()
    kwargs = {"output_logits": True, "return_dict_in_generate": True, **GREEDY}
    out = model.generate(ids, images=images, image_sizes=sizes, attention_mask=mask, **kwargs)
    for row, name in enumerate(("wide", "tall")):
        single_ids, single_pixels, single_size = sample(name)
        alone = model.generate(single_ids, images=single_pixels, image_sizes=single_size, **kwargs)
        assert out.sequences[row].tolist() == alone.sequences[0].tolist()
        steps = torch.stack([step[row] for step in out.logits])
        torch.testing.assert_close(steps, torch.cat(alone.logits), atol=TOLERANCE, rtol=0)


def written_out(model, embeds, keep, layer):
    """Logits of one row [n, V]: `layer` decoder layers see all positions, the others `keep`; no cache, no `dart`."""
    decoder = model.model
    rope = decoder.rotary_emb(embeds, torch.arange(embeds.shape[1])[None])
    hidden, positions = embeds, torch.arange(embeds.shape[1])
    for number, block in enumerate(decoder.layers):
        if number == layer:
            hidden, positions = hidden[:, keep], keep
            rope = tuple(part[:, keep] for part in rope)
        seen = (positions[None, :] <= positions[:, None])[None, None]
        hidden = block(hidden, attention_mask=seen, position_embeddings=rope)
    return model.lm_head(decoder.norm(hidden))[0]


@torch.no_grad()
def test_two_pictures_of_different_sizes_in_one_prompt(model):
    _, _, processor, _ = loaded()
    prompt, tall_pixels, tall_size = sample("tall")
    other = load_image(str(GOLDEN / "images" / "llava15.png"))
    pixels = process_images([other], processor, model.config)
    place = prompt.tolist()[0].index(IMAGE_TOKEN_INDEX)
    ids = torch.cat([prompt[:, : place + 2], prompt[:, place:]], 1)  # picture, a word, picture
    images, sizes = [pixels[0], tall_pixels[0]], [other.size, *tall_size]
    logits = model(ids, images=images, image_sizes=sizes).logits[0]

    # The pieces put together by hand.
    embed = model.model.embed_tokens
    features = model.encode_images(images, sizes)
    counts = [len(each) for each in features]
    assert counts == [576 + 24 * (32 + 1), RECORD["samples"]["tall"]["image_tokens"]]
    whole = "sample.tall.inputs_embeds"
    recorded = tensors()[whole][IMAGE_START : IMAGE_START + counts[1]]
    torch.testing.assert_close(features[1], recorded, atol=TOLERANCE, rtol=0)
    text = prompt[0]
    pieces = [
        embed(text[:place]),
        features[0],
        embed(text[place + 1 : place + 2]),
        features[1],
        embed(text[place + 1 :]),
    ]
    embeds = torch.cat(pieces)[None]
    visual = torch.zeros(embeds.shape[1], dtype=torch.bool)
    visual[place : place + counts[0]] = True
    visual[place + counts[0] + 1 : place + counts[0] + 1 + counts[1]] = True
    handle = model.dart_handle
    if handle is None:
        keep, layer = torch.arange(len(visual)), len(model.model.layers)
    else:
        assert handle.last.visual_before == [sum(counts)]
        keep = torch.cat([(~visual).nonzero().flatten(), handle.last.kept[0]]).sort().values
        layer = 2
        assert visual[handle.last.kept[0]].all()
    torch.testing.assert_close(logits, written_out(model, embeds, keep, layer), atol=TOLERANCE, rtol=0)


def test_views_of_merged_tokens():
    """A grid of 2 x 1 tiles of 2 x 2 patches, a picture that fills it: rows end in newlines."""
    features = torch.arange(1.0, 4)[:, None, None].expand(3, 4, 1)
    merged = merge_tiles(features, (2, 4), [(2, 4), (4, 2)], 2, torch.zeros(1))[:, 0]
    assert merged.tolist() == [1, 1, 1, 1, 2, 2, 0, 2, 2, 0, 3, 3, 0, 3, 3, 0]
    ids = view_ids(3, 4, (2, 4), [(2, 4), (4, 2)], 2, True)
    assert ids.tolist() == [1, 1, 1, 1, 2, 2, 2, 2, 2, 2, 3, 3, 3, 3, 3, 3]
    side_by_side = view_ids(3, 4, (4, 2), [(2, 4), (4, 2)], 2, True)
    assert side_by_side.tolist() == [1, 1, 1, 1, 2, 2, 3, 3, 3, 2, 2, 3, 3, 3]


@torch.no_grad()
def test_a_quota_for_each_tile():
    model = loaded()[1]
    ids, pixels, sizes = sample("wide")
    spans = model.merge(ids, pixels, image_sizes=sizes).visual_span_ids[0]
    share = 320 / int((spans > 0).sum())
    with dart.prune(model, dart.DartConfig(keep=320, scope="span")) as handle:
        model(ids, images=pixels, image_sizes=sizes)
    counts = spans[handle.last.kept[0]].bincount(minlength=6)
    assert counts[0] == 0 and len(counts) == 6
    for view in range(1, 6):
        quota = share * int((spans == view).sum())
        assert 4 + 8 * (int(quota) // 8) <= counts[view] <= 4 + 8 * ((int(quota) + 1) // 8)


@pytest.fixture(scope="module")
def converted():
    return convert_model(loaded()[1], IMAGE_ID)


def for_transformers(name):
    ids, pixels, sizes = sample(name)
    place = ids[0].tolist().index(IMAGE_TOKEN_INDEX)
    count = RECORD["samples"][name]["image_tokens"]
    ids = torch.cat([ids[:, :place], torch.full((1, count), IMAGE_ID), ids[:, place + 1 :]], 1)
    heights = torch.tensor([[height, width] for width, height in sizes])
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "pixel_values": pixels, "image_sizes": heights}


@pytest.mark.parametrize("name", ["off-sdpa", "dart320-sdpa", "dart160-sdpa", "dart320-tall-sdpa"])
@torch.no_grad()
def test_the_recorded_runs_in_transformers_class(converted, name):
    run = RUNS[name]
    inputs = for_transformers(run["sample"])
    handle = None
    if run["DART_config"] is not None:
        handle = dart.prune(converted, dart.DartConfig.from_original(run["DART_config"], anyres=True))
    try:
        out = converted(**inputs, use_cache=True)
        expected = tensors()[f"{name}.prefill_last_logits"]
        torch.testing.assert_close(out.logits[:, -1, : expected.shape[1]], expected, atol=TOLERANCE, rtol=0)
        assert cache_lengths(out.past_key_values) == run["kv_lengths_after_prefill"]
        tokens = converted.generate(**inputs, do_sample=False, max_new_tokens=8, min_new_tokens=8)
        assert tokens[0, inputs["input_ids"].shape[1] :].tolist() == run["tokens"][1:9]
    finally:
        if handle is not None:
            handle.remove()


@torch.no_grad()
def test_a_converted_folder_answers_as_the_original(tmp_path):
    source = GOLDEN / "ckpt" / "llava-v1.6-vicuna-tiny"
    convert(["--model-path", str(source), "--output", str(tmp_path), "--torch-dtype", "float32"])
    processor = LlavaNextProcessor.from_pretrained(tmp_path, backend="pil")
    assert processor.tokenizer.padding_side == "left", "the first answers of a padded batch would be empty"
    model = LlavaNextForConditionalGeneration.from_pretrained(tmp_path).eval()
    image = load_image(str(GOLDEN / "images" / "llava16_tall.png"))
    inputs = dict(processor(text=RECORD["samples"]["tall"]["prompt"], images=image, return_tensors="pt"))
    ids, pixels, _ = sample("tall")
    assert torch.equal(inputs["pixel_values"], pixels)
    assert int((inputs["input_ids"] == model.config.image_token_id).sum()) == RECORD["samples"]["tall"]["image_tokens"]
    # transformers' tokenizer puts no space after the picture, LLaVA's prompts do.
    inputs |= {k: v for k, v in for_transformers("tall").items() if k in ("input_ids", "attention_mask")}
    inputs["input_ids"][inputs["input_ids"] == IMAGE_ID] = model.config.image_token_id
    with dart.prune(model, dart.DartConfig.from_original(DART, anyres=True)):
        tokens = model.generate(**inputs, do_sample=False, max_new_tokens=5, min_new_tokens=5)
    assert tokens[0, -5:].tolist() == RUNS["dart320-tall-sdpa"]["tokens"][1:6]


@pytest.mark.parametrize("name", ["wide", "tall"])
@torch.no_grad()
def test_both_classes_number_the_tiles_alike(converted, name):
    ids, pixels, sizes = sample(name)
    spans = loaded()[1].merge(ids, pixels, image_sizes=sizes).visual_span_ids
    inputs = for_transformers(name)
    with dart.prune(converted, dart.DartConfig(keep=320)) as handle:
        assert torch.equal(handle.family.visual_span_ids(converted, inputs), spans)
        converted(**inputs)
        kept = handle.last.kept[0].tolist()
        converted.generate(**inputs, num_beams=2, max_new_tokens=2, do_sample=False)
        assert [row.tolist() for row in handle.last.kept] == [kept, kept]  # `generate` encodes pictures beforehand


@pytest.mark.parametrize("size", [(336, 336), (100, 100), (50, 900), (900, 50), (500, 400), (672, 335), (301, 1000)])
@torch.no_grad()
def test_tiles_are_read_from_merged_features_as_from_the_size(converted, size):
    count = llava_next._views_of_size(converted, size).max()
    patches = torch.randn(int(count), 24 * 24, 64, generator=torch.Generator().manual_seed(0))
    (merged,), _ = converted.model.pack_image_features(
        [patches], [size], "default", image_newline=converted.model.image_newline
    )
    expected = llava_next._views_of_size(converted, size)
    assert torch.equal(llava_next._views_of_features(converted, merged), expected)


@torch.no_grad()
def test_a_batch_in_transformers_class_equals_each_alone(converted):
    wide, tall = for_transformers("wide"), for_transformers("tall")
    gap = wide["input_ids"].shape[1] - tall["input_ids"].shape[1]
    pad = torch.nn.functional.pad
    tiles = wide["pixel_values"].shape[1] - tall["pixel_values"].shape[1]
    batch = {name: torch.cat([wide[name], pad(tall[name], (gap, 0))]) for name in ("input_ids", "attention_mask")}
    batch["pixel_values"] = torch.cat([wide["pixel_values"], pad(tall["pixel_values"], (0, 0) * 3 + (0, tiles))])
    batch["position_ids"] = (batch["attention_mask"].cumsum(-1) - 1).clamp_min(0)  # as `generate` makes them
    batch["image_sizes"] = torch.cat([wide["image_sizes"], tall["image_sizes"]])
    with dart.prune(converted, dart.DartConfig(keep=320)) as handle:
        alone = [converted(**inputs).logits[0, -1] for inputs in (wide, tall)]
        logits = converted(**batch).logits[:, -1]
        assert len(handle.last.kept) == 2
    torch.testing.assert_close(logits, torch.stack(alone), atol=TOLERANCE, rtol=0)


def other_language_model(kind, folder):
    """A random LLaVA-NeXT on another language model, saved in the original layout; its tower beside it."""
    original = loaded()[1].config
    fields = {
        name: getattr(original, name)
        for name in vars(original)
        if name.startswith(("mm_", "image_")) or name in ("vocab_size", "tokenizer_padding_side", "use_mm_proj")
    }
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 4}
    extra = {"sliding_window": None} if kind is LlavaMistralForCausalLM else {"tie_word_embeddings": True}
    torch.manual_seed(0)
    config = kind.config_class(**fields, **sizes, **extra, num_key_value_heads=2, initializer_range=0.2, pad_token_id=0)
    model = kind(config).eval()
    assert 0.5 < model.model.image_newline.norm() < 2  # made, not what memory held
    model.save_pretrained(folder)
    for file in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        (folder / file).write_bytes((GOLDEN / "ckpt" / "llava-v1.6-vicuna-tiny" / file).read_bytes())
    (folder.parent / "openai").symlink_to(GOLDEN / "ckpt" / "openai")
    return model


@pytest.mark.parametrize("kind", [LlavaMistralForCausalLM, LlavaQwenForCausalLM])
@torch.no_grad()
def test_other_language_models_load_prune_and_decode(kind, tmp_path):
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    saved = other_language_model(kind, folder)
    tokenizer, model, processor, _ = load_pretrained_model(str(folder), None, "any", device="cpu")
    assert type(model) is kind
    assert torch.equal(model.model.layers[3].mlp.up_proj.weight, saved.model.layers[3].mlp.up_proj.weight)
    ids, _, _ = sample("tall")
    image = load_image(str(GOLDEN / "images" / "llava16_tall.png"))
    pictures = {"images": process_images([image], processor, model.config), "image_sizes": [image.size]}
    model.config.DART_config = DART
    out = model.generate(ids, output_logits=True, return_dict_in_generate=True, **pictures, **GREEDY)
    kept = model.dart_handle.last.kept[0]
    assert len(kept) == 324
    merged = model.merge(ids, **pictures)
    embeds = torch.cat([merged.inputs_embeds, model.model.embed_tokens(out.sequences[:, :-1])], 1)
    text = (merged.visual_span_ids[0] == 0).nonzero().flatten()
    new = torch.arange(merged.inputs_embeds.shape[1], embeds.shape[1])
    keep = torch.cat([text, kept, new]).sort().values
    target = written_out(model, embeds, keep, 2)[-5:]
    torch.testing.assert_close(torch.cat(out.logits), target, atol=1e-3, rtol=1e-3)


def test_unknown_language_models_are_named(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "llava_next", "mm_vision_tower": "x"}')
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="model_type 'llava_next' is not one of llava_llama.*transformers"):
        load_pretrained_model(str(tmp_path), None, "any", device="cpu")


@pytest.mark.parametrize(
    ("name", "end"),
    [
        (
            "llava_llama_3",
            "language.<|eot_id|><|start_header_id|>user<|end_header_id|>\n\n<image>\nWhat?<|eot_id|>"
            "<|start_header_id|>assistant<|end_header_id|>\n\n",
        ),
        (
            "qwen_1_5",
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<image>\nWhat?<|im_end|>\n"
            "<|im_start|>assistant\n",
        ),
        ("mistral_instruct", "[INST] <image>\nWhat? [/INST]"),
    ],
)
def test_templates_of_the_other_language_models(name, end):
    talk = get_template(name)
    talk.append_message(talk.roles[0], "<image>\nWhat?")
    talk.append_message(talk.roles[1], None)
    assert talk.get_prompt().endswith(end)
