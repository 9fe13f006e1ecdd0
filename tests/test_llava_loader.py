"""The loader's layouts and its errors, preprocessing of pictures, and templates."""

from __future__ import annotations

import importlib.util
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from llava_golden import CHECKPOINT, GOLDEN, RECORD, loaded, sample, tensors
from PIL import Image
from safetensors.torch import save_file

from llava.conversation import conv_templates, get_template
from llava.mm_utils import (
    KeywordsStoppingCriteria,
    expand2square,
    get_model_name_from_path,
    load_image,
    process_images,
    tokenizer_image_token,
)
from llava.model.builder import load_pretrained_model

TOWER = GOLDEN / "ckpt" / "openai"
TOLERANCE = 1e-4


@pytest.fixture
def checkpoint(tmp_path):
    """A writable copy of the recorded checkpoint with its tower beside it."""
    shutil.copytree(TOWER, tmp_path / "openai")
    return shutil.copytree(CHECKPOINT, tmp_path / "llava")


def weights(folder) -> dict[str, torch.Tensor]:
    merged: dict[str, torch.Tensor] = {}
    for shard in sorted(folder.glob("pytorch_model-*.bin")):
        merged |= torch.load(shard, weights_only=True)
        shard.unlink()
    (folder / "pytorch_model.bin.index.json").unlink()
    return merged


def without_projector(checkpoint) -> dict[str, torch.Tensor]:
    """Make `checkpoint` a language model alone, as a base is; its projector's weights."""
    tensors_ = weights(checkpoint)
    projector = {n: v for n, v in tensors_.items() if "mm_projector" in n}
    rest = {n: v for n, v in tensors_.items() if n not in projector}
    save_file(rest, checkpoint / "model.safetensors", {"format": "pt"})
    return projector


def load(folder, **options):
    return load_pretrained_model(str(folder), None, "any", device="cpu", **options)


@torch.no_grad()
def assert_recorded_logits(model) -> None:
    ids, pixels = sample("a")
    logits = model(ids, images=pixels).logits[:, -1]
    torch.testing.assert_close(logits, tensors()["off-sdpa.prefill_last_logits"], atol=TOLERANCE, rtol=0)


def test_a_checkpoint_without_a_tokenizer_is_refused(checkpoint):
    (checkpoint / "tokenizer.model").unlink()
    with pytest.raises(FileNotFoundError, match=r"has no tokenizer: expected one of tokenizer\.model"):
        load(checkpoint)


def damage(checkpoint, kind: str) -> None:
    config, last = checkpoint / "config.json", checkpoint / "pytorch_model-00002-of-00002.bin"
    if kind in ("nan", "inf"):
        tensors_ = torch.load(last, weights_only=True)
        tensors_["lm_head.weight"][3, 5] = float(kind)
        torch.save(tensors_, last)
    elif kind == "cut .bin":
        last.write_bytes(last.read_bytes()[:1000])
    elif kind == "cut .safetensors":
        save_file(weights(checkpoint), checkpoint / "model.safetensors", {"format": "pt"})
        whole = (checkpoint / "model.safetensors").read_bytes()
        (checkpoint / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    elif kind == "tokenizer":
        (checkpoint / "tokenizer.model").write_bytes(b"\x00garbage")
    elif kind == "index":
        (checkpoint / "pytorch_model.bin.index.json").write_text("[1]")
    elif kind == "config list":
        config.write_text("[]")
    else:
        config.write_text(json.dumps(json.loads(config.read_text()) | {"hidden_size": "wide"}))


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        ("nan", "NaN or infinite in float32: lm_head.weight \\(1 in all"),
        ("inf", "NaN or infinite"),
        *((kind, "llava") for kind in ("cut .bin", "cut .safetensors", "tokenizer", "index", "config list", "config")),
    ],
)
def test_a_damaged_checkpoint_is_one_error(checkpoint, kind, said):
    damage(checkpoint, kind)
    with pytest.raises(ValueError, match=said):
        load(checkpoint)


@pytest.mark.parametrize("size", [3, 5000])
def test_a_tokenizer_of_another_size_is_refused(checkpoint, monkeypatch, size):
    class Other:
        def __len__(self) -> int:
            return size

    monkeypatch.setattr("llava.model.builder.AutoTokenizer.from_pretrained", lambda folder: Other())
    with pytest.raises(ValueError, match=f"has {size} tokens for the .* rows of the model's embedding"):
        load(checkpoint)


@pytest.mark.parametrize("layout", ["single.bin", "single.safetensors", "sharded.safetensors"])
def test_layouts(checkpoint, layout):
    tensors_ = weights(checkpoint)
    if layout == "single.bin":
        # Checkpoints of LLaVA's time also stored RoPE's frequencies.
        torch.save(
            tensors_ | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}, checkpoint / "pytorch_model.bin"
        )
    elif layout == "single.safetensors":
        save_file(tensors_, checkpoint / "model.safetensors", {"format": "pt"})
    else:
        names = sorted(tensors_)
        parts = {f"model-0000{k + 1}-of-00002.safetensors": names[k::2] for k in range(2)}
        for shard, part in parts.items():
            save_file({n: tensors_[n] for n in part}, checkpoint / shard, {"format": "pt"})
        index = {"metadata": {}, "weight_map": {n: shard for shard, part in parts.items() for n in part}}
        (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    assert_recorded_logits(load(checkpoint)[1])


@torch.no_grad()
def test_the_checkpoints_own_tower_wins(checkpoint):
    tensors_ = weights(checkpoint)
    tower = torch.load(next(TOWER.glob("*/pytorch_model.bin")), weights_only=True)
    own = {f"model.vision_tower.vision_tower.{n}": v.clone() for n, v in tower.items()}
    name = "model.vision_tower.vision_tower.vision_model.embeddings.patch_embedding.weight"
    own[name] = own[name] * 2
    save_file(tensors_ | own, checkpoint / "model.safetensors", {"format": "pt"})
    model = load(checkpoint)[1]
    patch = model.get_vision_tower().tower.embeddings.patch_embedding.weight
    torch.testing.assert_close(patch, own[name].float())


def test_tower_of_a_whole_clip_model(checkpoint):
    """openai/clip-vit-large-patch14-336 holds text weights too; the vision part is taken."""
    folder = next((checkpoint.parent / "openai").iterdir())
    vision = torch.load(folder / "pytorch_model.bin", weights_only=True)
    text = {"text_model.final_layer_norm.weight": torch.ones(8), "logit_scale": torch.ones(())}
    torch.save(vision | text, folder / "pytorch_model.bin")
    config = json.loads((folder / "config.json").read_text())
    whole = {"model_type": "clip", "architectures": ["CLIPModel"], "vision_config": config, "projection_dim": 32}
    (folder / "config.json").write_text(json.dumps(whole))
    assert_recorded_logits(load(checkpoint)[1])


def test_projector_checkpoint_on_a_base(checkpoint, tmp_path):
    projector = without_projector(checkpoint)
    trained = tmp_path / "trained"
    trained.mkdir()
    torch.save(projector, trained / "mm_projector.bin")
    shutil.copy(checkpoint / "config.json", trained)
    model = load_pretrained_model(str(trained), str(checkpoint), "any", device="cpu")[1]
    assert_recorded_logits(model)


@torch.no_grad()
def test_lora_checkpoint_on_a_base(checkpoint, tmp_path):
    peft = pytest.importorskip("peft")
    whole = load(checkpoint)[1]
    trained = tmp_path / "lora"
    settings = peft.LoraConfig(r=2, target_modules=r"model\.layers\.\d+\..*(q_proj|v_proj)", init_lora_weights=False)
    adapted = peft.get_peft_model(whole, settings)
    adapted.save_pretrained(trained)
    ids, pixels = sample("a")
    expected = adapted(input_ids=ids, images=pixels).logits
    projector = without_projector(checkpoint)
    torch.save({f"base_model.model.{n}": v for n, v in projector.items()}, trained / "non_lora_trainables.bin")
    shutil.copy(checkpoint / "config.json", trained)
    model = load_pretrained_model(str(trained), str(checkpoint), "any", device="cpu")[1]
    torch.testing.assert_close(model(ids, images=pixels).logits, expected, atol=TOLERANCE, rtol=0)
    assert (expected[:, -1] - tensors()["off-sdpa.prefill_last_logits"]).abs().max() > 0.01
    model.config.DART_config = RECORD["runs"]["dart128-sdpa"]["DART_config"]
    assert model(ids, images=pixels).logits.shape[1] < expected.shape[1]


def test_lora_checkpoint_needs_peft(checkpoint, tmp_path, monkeypatch):
    trained = tmp_path / "lora"
    trained.mkdir()
    (trained / "adapter_config.json").write_text("{}")
    shutil.copy(checkpoint / "config.json", trained)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "peft" else find_spec(name, *rest)
    )
    with pytest.raises(ValueError, match="LoRA checkpoint and needs the package peft.*pip install peft"):
        load_pretrained_model(str(trained), str(checkpoint), "any", device="cpu")


def test_lora_checkpoint_without_its_base_is_named(checkpoint):
    (checkpoint / "adapter_config.json").write_text("{}")
    weights(checkpoint)
    with pytest.raises(ValueError, match="LoRA checkpoint: give its base model"):
        load(checkpoint)


def test_dtype_context_and_padding_token():
    tokenizer, model, _, context = loaded()
    assert model.dtype == torch.float32 and context == 2048
    assert tokenizer.pad_token_id == 0
    assert load(CHECKPOINT, torch_dtype=torch.bfloat16)[1].dtype == torch.bfloat16


def test_missing_shard_is_named(checkpoint):
    (checkpoint / "pytorch_model-00002-of-00002.bin").unlink()
    with pytest.raises(FileNotFoundError, match="pytorch_model-00002-of-00002.bin is missing"):
        load(checkpoint)


def test_no_silent_random_weights(checkpoint):
    tensors_ = weights(checkpoint)
    del tensors_["model.mm_projector.2.bias"]
    save_file(tensors_, checkpoint / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match="lacks weights: model.mm_projector.2.bias"):
        load(checkpoint)


def test_unknown_weights_are_named(checkpoint):
    save_file(
        weights(checkpoint) | {"model.resampler.weight": torch.ones(2)},
        checkpoint / "model.safetensors",
        {"format": "pt"},
    )
    with pytest.raises(ValueError, match="unknown weights: model.resampler.weight"):
        load(checkpoint)


def test_other_folders_are_refused(checkpoint, tmp_path):
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="config.json"):
        load(tmp_path)
    weights(checkpoint)
    with pytest.raises(FileNotFoundError, match="has no weights"):
        load(checkpoint)


def test_missing_tower_is_named(checkpoint, monkeypatch):
    shutil.rmtree(checkpoint.parent / "openai")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match="clip-vit-tiny-patch14-336"):
        load(checkpoint)


def test_unknown_projector(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text()) | {"mm_projector_type": "perceiver"}
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="mm_projector_type 'perceiver'"):
        load(checkpoint)


@pytest.mark.parametrize("option", ["load_8bit", "load_4bit"])
def test_quantised_loading_needs_bitsandbytes(option, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        load(CHECKPOINT, **{option: True})


def test_pad_colour_and_place():
    square = np.asarray(expand2square(Image.new("RGB", (4, 2), (9, 9, 9)), (1, 2, 3)))
    assert square.shape == (4, 4, 3)
    assert (square[[0, 3]] == (1, 2, 3)).all() and (square[1:3] == 9).all()


def test_plain_preprocessing_crops_the_centre():
    processor = loaded()[2]
    image = load_image(str(GOLDEN / "images" / "llava15.png"))
    plain = process_images([image], processor, SimpleNamespace(image_aspect_ratio=None))
    left = (image.width - 336) // 2
    pixels = np.asarray(image.crop((left, 0, left + 336, 336)), dtype=np.float32) / 255
    expected = (pixels - np.float32(processor.image_mean)) / np.float32(processor.image_std)
    np.testing.assert_allclose(plain[0].numpy(), expected.transpose(2, 0, 1), atol=1e-5)


def test_images_that_cannot_be_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="nope.png"):
        load_image(str(tmp_path / "nope.png"))
    whole = (GOLDEN / "images" / "llava15.png").read_bytes()
    (tmp_path / "half.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="half.png.*truncated"):
        load_image(str(tmp_path / "half.png"))


def test_tokenizer_image_token_and_round_trip():
    tokenizer = loaded()[0]
    ids = tokenizer_image_token("a <image> b <image> c", tokenizer)
    assert ids.count(-200) == 2 and ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    with pytest.raises(ValueError, match="return_tensors"):
        tokenizer_image_token("a", tokenizer, return_tensors="np")
    for text in ("the polite user", "1 + 1 = 2", "naïve ✓"):
        assert tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True).strip() == text


def test_keywords_stop_a_row():
    tokenizer = loaded()[0]
    stop = KeywordsStoppingCriteria(["user"], tokenizer)
    rows = torch.tensor([tokenizer("the user asks").input_ids[:4] + [0] * 4, tokenizer("the").input_ids[:2] + [0] * 6])
    assert stop(rows, None).tolist() == ["user" in tokenizer.decode(row) for row in rows]


def test_model_names():
    assert get_model_name_from_path("a/b/llava-v1.5-7b/") == "llava-v1.5-7b"
    assert get_model_name_from_path("out/llava/checkpoint-100") == "llava_checkpoint-100"


@pytest.mark.parametrize("name", RECORD["samples"])
def test_vicuna_v1_is_the_recorded_prompt(name):
    prompt = RECORD["samples"][name]["prompt"]
    question = prompt.split("USER: ", 1)[1].rsplit(" ASSISTANT:", 1)[0]
    assert _prompt("vicuna_v1", question) == prompt


def _prompt(template: str, *turns: str) -> str:
    conversation = get_template(template)
    for k, text in enumerate([*turns, None]):
        conversation.append_message(conversation.roles[k % 2], text)
    return conversation.get_prompt()


@pytest.mark.parametrize(
    ("template", "end"),
    [
        ("vicuna_v1", " USER: q1 ASSISTANT: a1</s>USER: q2 ASSISTANT:"),
        ("llava_v0", "###Human: q1###Assistant: a1###Human: q2###Assistant:"),
        ("plain", "q1\na1q2\n"),
        ("mistral_instruct", "[INST] q1 [/INST] a1 </s>[INST] q2 [/INST]"),
        ("llama_2", "<</SYS>>\n\nq1 [/INST] a1 </s><s>[INST] q2 [/INST]"),
        (
            "mpt",
            "<|im_end|><|im_start|>user\nq1<|im_end|><|im_start|>assistant\na1<|im_end|>"
            "<|im_start|>user\nq2<|im_end|><|im_start|>assistant\n",
        ),
    ],
)
def test_templates(template, end):
    assert _prompt(template, "q1", "a1", "q2").endswith(end)


def test_unknown_template_lists_the_known():
    with pytest.raises(ValueError, match="vicuna_v2.*vicuna_v1"):
        get_template("vicuna_v2")
    assert {"v1", "llava_v1", "llava_llama_2", "chatml_direct"} <= set(conv_templates)
