"""The tiny Qwen models are trained on what transformers computes: tower, chat format, positions, export."""

import copy
import random

import pytest
import torch
from tokenizers import Tokenizer
from torch.nn.functional import cross_entropy
from transformers import AutoModelForImageTextToText, AutoTokenizer

from dev.tiny.batches import IGNORE
from dev.tiny.losses import turns_loss
from dev.tiny.questions import Mix
from dev.tiny.qwen.export import export
from dev.tiny.qwen.model import FAMILIES, PACES, TinyQwen, patches_of
from dev.tiny.qwen.pictures import Grid
from dev.tiny.qwen.prompts import OPENING, TURN, ChatPacker, head_of
from dev.tiny.qwen.samples import KINDS, sample
from dev.tiny.qwen.tokenizer import train_tokenizer
from dev.tiny.several import FRAMES, drift
from dev.tiny.world import sample_scene


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    train_tokenizer(path)
    return Tokenizer.from_file(str(path))


@pytest.fixture(scope="module", params=FAMILIES)
def tiny(request, tokenizer):
    torch.manual_seed(0)
    return TinyQwen(request.param, tokenizer).eval()


@torch.no_grad()
@pytest.mark.parametrize("grid", [Grid(5, 9), Grid(8, 4)], ids=str)
def test_the_tower_on_batches_is_that_of_transformers(tiny, grid):
    frames = torch.randn(3, 2, 3, *grid.pixels[::-1])
    thw = torch.tensor([[1, 2 * grid.rows, 2 * grid.columns]] * len(frames))
    expected = tiny.tower(patches_of(frames).flatten(0, 1), grid_thw=thw).pooler_output
    assert torch.allclose(tiny.image_features(frames).flatten(0, 1), expected, atol=1e-5)


def inputs_of(model, packer, shown, question):
    """transformers' inputs for one row, and its labels."""
    ids, visual = list(packer.prefix), {}
    for k, each in enumerate(shown):
        moments, grid = len(each.moments), each.grid
        kind, pixels = ("video", "pixel_values_videos") if moments > 1 else ("image", "pixel_values")
        ids += packer.between if k else []
        ids += [getattr(model.net.config, f"{kind}_token_id")] * (moments * grid.rows * grid.columns)
        rows = torch.cat([patches_of(frames) for frames in each.frames().chunk(moments)], 1)[0]
        thw = torch.tensor([[moments, 2 * grid.rows, 2 * grid.columns]])
        for name, value in ((pixels, rows), (f"{kind}_grid_thw", thw)):
            visual[name] = torch.cat([visual[name], value]) if name in visual else value
    if model.family == "qwen2_5_vl" and "video_grid_thw" in visual:
        visual["second_per_grid_ts"] = torch.tensor([1.0])
    asked, targets = packer.turn(question)
    ids = torch.tensor([ids + asked])
    config = model.net.config
    types = (ids == config.image_token_id).int() + 2 * (ids == config.video_token_id).int()
    labels = torch.tensor([IGNORE] * (ids.shape[1] - len(targets)) + targets)
    return {"input_ids": ids, "mm_token_type_ids": types, "attention_mask": torch.ones_like(ids), **visual}, labels


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS)
def test_a_training_step_computes_what_transformers_does(tiny, tokenizer, kind):
    packer, rng, mix = ChatPacker(tokenizer), random.Random(3), Mix()
    step = next(s for s in (sample(rng, 1, 1, mix) for _ in range(100)) if s.kind == kind)
    visuals = []
    for shown in step.shown:
        tokens = torch.cat(tiny.image_features(shown.frames()).chunk(len(shown.moments)), 1)
        visuals.append(shown.visual(tokens, shown.facts()[1], PACES[tiny.family]))
    head = head_of(tiny.text.embed_tokens, packer, visuals)
    loss, _, _ = turns_loss(tiny.llm, head.embeddings, head.positions, head.begin, packer.pack(step.questions))
    inputs, labels = inputs_of(tiny, packer, step.shown, step.questions[0][0])
    reference = copy.deepcopy(tiny.net)
    reference.set_attn_implementation("eager")
    logits = reference(**inputs).logits[0]
    wanted = labels[1:] != IGNORE
    assert loss.item() == pytest.approx(cross_entropy(logits[:-1][wanted], labels[1:][wanted]).item(), abs=1e-5)


def test_videos_drift_within_the_picture():
    rng = random.Random(0)
    for _ in range(20):
        scene = sample_scene(rng)
        frames = drift(scene, rng)
        assert len(frames) == FRAMES and frames[0].things == scene.things
        for frame in frames:
            assert all(t.rx <= t.x <= 1 - t.rx and t.ry <= t.y <= 1 - t.ry for t in frame.things)


@torch.no_grad()
def test_the_export_loads_in_transformers_with_the_chat_format_of_training(tiny, tokenizer, tmp_path):
    export(tiny, tokenizer, tmp_path)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path, dtype="float32")
    for name, value in model.state_dict().items():
        assert torch.equal(value, tiny.net.state_dict()[name].bfloat16().float()), name
    rope, trained = (each.config.text_config.rope_parameters for each in (model, tiny.net))
    assert all(rope[name] == trained[name] for name in ("rope_theta", "mrope_section"))
    reader = AutoTokenizer.from_pretrained(tmp_path)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What color is the star?"}]}]
    chat = reader.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert chat == OPENING + "<|image_pad|>" + TURN.format("What color is the star?")
    assert reader(chat).input_ids == tokenizer.encode(chat).ids
