"""LLaVA's training: labels worked out by hand, the sampler, what learns at which rate, what is saved, and resuming."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoTokenizer, CLIPVisionConfig, CLIPVisionModel, TrainerCallback
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import dart
from dart.training import drawn
from dart.utils import UserError
from llava.constants import IGNORE_INDEX, IMAGE_TOKEN_INDEX
from llava.conversation import get_template
from llava.files import EMBEDDED_MODEL
from llava.mm_utils import tokenizer_image_token
from llava.model import LlavaLlamaConfig, LlavaLlamaForCausalLM
from llava.model.builder import load_pretrained_model
from llava.train import checkpoints, conversations, sampling, train
from llava.train.arguments import _check_lora, parse, translate
from llava.train.conversations import BadSample
from llava.train.data import collate
from llava.train.setup import load_learner, plan
from llava.train.trainer import parameter_groups
from scripts import merge_lora_weights

CKPT = Path(__file__).parent / "golden" / "ckpt"
ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = sorted(ROOT.glob("scripts/v1_?/*.sh"))
LIMIT_SECONDS = 300
SIDE, PATCHES = 84, 36
STEPS = 6
COLORS = ("red", "green", "blue", "gray")


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    """A random LLaVA of 4 decoder layers and 36 visual tokens an image, with the embedded model's vocabulary."""
    folder = tmp_path_factory.mktemp("base")
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2, image_size=SIDE, patch_size=14
    )
    torch.manual_seed(0)
    CLIPVisionModel(vision).save_pretrained(folder / "tower")
    CLIPImageProcessorPil(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}).save_pretrained(
        folder / "tower"
    )
    config = LlavaLlamaConfig(
        vocab_size=640,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=2,
        initializer_range=0.2,
        tie_word_embeddings=False,
        mm_vision_tower="tower",
        mm_hidden_size=16,
        mm_projector_type="mlp2x_gelu",
        mm_vision_select_layer=-2,
        mm_use_im_patch_token=False,
    )
    LlavaLlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.model", "tokenizer_config.json", "special_tokens_map.json"):
        shutil.copy(EMBEDDED_MODEL / name, folder)
    return folder


def row_of(name: str, images: list[str], *turns: tuple[str, str]) -> dict:
    talk = [{"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn, strict=True)]
    place = {"image": images[0] if len(images) == 1 else images} if images else {}
    return {"id": name, **place, "conversations": talk}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """data.json: 8 images with a question or two, 4 rows of text, a pair of images; the images lie beside it."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for k in range(8):
        color = COLORS[k % len(COLORS)]
        Image.new("RGB", (90 + k, 84), color).save(folder / f"{k}.png")
        turns = [("<image>\nWhat color?", color), *([("Is it a circle?", "No")] if k % 2 else [])]
        rows.append(row_of(f"image-{k}", [f"{k}.png"], *turns))
    rows += [row_of(f"text-{k}", [], ("Is it red? " * (k + 1), "Yes" if k % 2 else "No")) for k in range(4)]
    rows.append(row_of("pair", ["0.png", "1.png"], ("<image>\n<image>\nSame color?", "No")))
    (folder / "data.json").write_text(json.dumps(rows))
    (folder / "captions.json").write_text(json.dumps([row_of("c", ["0.png"], ("What?\n<image>", "a red one"))] * 8))
    return folder


def arguments_of(base: Path, data: Path, out: Path, *more: str, file: str = "data.json"):
    words = ["--model_name_or_path", base, "--data_path", data / file, "--image_folder", data, "--output_dir", out]
    words += ["--max_steps", STEPS, "--per_device_train_batch_size", 2, "--logging_steps", 1, "--learning_rate", 1e-2]
    words += ["--report_to", "none", "--disable_tqdm", "True", "--warmup_ratio", 0.03, "--save_steps", 3, *more]
    return parse([str(word) for word in words])


def losses_of(trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


# Labels.


def tokenizer_of(version: str):
    if version in ("v1", "plain", "llama_2", "mistral_instruct"):
        return AutoTokenizer.from_pretrained(EMBEDDED_MODEL)
    tokenizer = AutoTokenizer.from_pretrained(CKPT / "qwen2.5-vl-tiny")
    marks = ["<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"]
    tokenizer.add_special_tokens({"additional_special_tokens": marks})
    return tokenizer


def encoded(version: str, turns, images: int = 1):
    """(the prompt's text, its tokens, the tokenizer)."""
    template, tokenizer = get_template(version), tokenizer_of(version)
    conversations.check_tokenizer(tokenizer, template, version)
    turns = conversations.with_images_first(turns, images, "s") if images else turns
    prompt = conversations.write_prompt(turns, template, "s")
    return prompt.text, conversations.tokenize(prompt, tokenizer, images, "s"), tokenizer


TWO_TURNS = [("human", "What color?\n<image>"), ("gpt", "red"), ("human", "Is it?"), ("gpt", "No way")]
V1 = "answers to the user's questions. USER: <image>\nWhat color? ASSISTANT: red</s>USER: Is it? ASSISTANT: No way</s>"
LLAMA = "<image>\nWhat color? [/INST] red </s>{}[INST] Is it? [/INST] No way </s>"
CHATML = (
    "<|im_end|>{0}<|im_start|>user\n<image>\nWhat color?<|im_end|>{0}<|im_start|>assistant\nred<|im_end|>{0}"
    "<|im_start|>user\nIs it?<|im_end|>{0}<|im_start|>assistant\nNo way<|im_end|>{0}"
)
HEADER = "<|start_header_id|>{}<|end_header_id|>\n\n"
LLAMA_3 = (
    f"<|eot_id|>{HEADER.format('user')}<image>\nWhat color?<|eot_id|>{HEADER.format('assistant')}red<|eot_id|>"
    f"{HEADER.format('user')}Is it?<|eot_id|>{HEADER.format('assistant')}No way<|eot_id|>"
)
WORDS = ["re", "d", "{}", "N", "o", "Ġw", "ay", "{}"]
CASES = {
    "v1": (V1, ["▁red", "</s>", "▁No", "▁w", "ay", "</s>"]),
    "llama_2": (LLAMA.format("<s>"), ["▁red", "▁", "</s>", "▁No", "▁w", "ay", "▁", "</s>"]),
    "mistral_instruct": (LLAMA.format(""), ["▁red", "▁", "</s>", "▁No", "▁w", "ay", "▁", "</s>"]),
    "mpt": (CHATML.format(""), [word.format("<|im_end|>") for word in WORDS]),
    "qwen_1_5": (CHATML.format("\n"), [word.format("<|im_end|>") for word in WORDS]),
    "llava_llama_3": (LLAMA_3, [word.format("<|eot_id|>") for word in WORDS]),
}


@pytest.mark.parametrize("version", CASES)
def test_answers_and_their_end_markers_are_learned_and_nothing_else(version):
    ending, learned = CASES[version]
    text, tokens, tokenizer = encoded(version, TWO_TURNS)
    assert text.endswith(ending)
    assert tokens.ids.tolist() == tokenizer_image_token(text, tokenizer)
    kept = tokens.labels != IGNORE_INDEX
    assert tokenizer.convert_ids_to_tokens(tokens.ids[kept].tolist()) == learned
    assert torch.equal(tokens.labels[kept], tokens.ids[kept])


def test_an_answer_begins_where_a_prompt_for_generation_ends():
    for version in CASES:
        conversation = get_template(version)
        conversation.append_message(conversation.roles[0], "Why?")
        conversation.append_message(conversation.roles[1], None)
        asked = conversation.get_prompt()
        prompt = conversations.write_prompt([("human", "Why?"), ("gpt", "So")], get_template(version), "s")
        assert prompt.text[: prompt.answers[0][0]] == asked


def test_v1_agrees_with_llavas_counting_of_rounds():
    """LLaVA's rule: split at the end marker and at " ASSISTANT: "; two tokens of a question are not its own."""
    text, tokens, tokenizer = encoded(
        "v1", [("human", "What?"), ("gpt", "two dogs"), ("human", "Why?"), ("gpt", "x")], 0
    )
    wanted, start = torch.full_like(tokens.labels, IGNORE_INDEX), 1
    for number, part in enumerate(text.split("</s>")[:-1]):
        asked = part.split(" ASSISTANT: ")[0] + " ASSISTANT: "
        first = int(number > 0)  # a later round has no "▁" in front, which the tokenizer gives it when it stands alone
        length = len(tokenizer(part + "</s>").input_ids) - 1 - first * text_has_own_start(tokenizer, part)
        question = len(tokenizer(asked).input_ids) - 2 - first * text_has_own_start(tokenizer, part)
        wanted[start + question : start + length] = tokens.ids[start + question : start + length]
        start += length
    assert torch.equal(tokens.labels, wanted)


def text_has_own_start(tokenizer, part: str) -> int:
    """How many tokens more `part` has alone than behind an end marker."""
    return len(tokenizer(part).input_ids) + 1 - len(tokenizer("</s>" + part).input_ids)


def test_plain_learns_the_caption_and_the_lines_end():
    text, tokens, tokenizer = encoded("plain", [("human", "Describe it.\n<image>"), ("gpt", "a cap")])
    assert text == "<image>a cap\n"
    assert tokens.ids[:2].tolist() == [tokenizer.bos_token_id, IMAGE_TOKEN_INDEX]
    assert tokenizer.convert_ids_to_tokens(tokens.labels[2:].tolist()) == ["▁a", "▁c", "ap", "<0x0A>"]
    assert (tokens.labels[:2] == IGNORE_INDEX).all()


def test_placeholders():
    first = conversations.with_images_first
    assert first([("human", "a <image> b"), ("gpt", "c")], 1, "s")[0][1] == "<image>\na  b"
    both = [("human", "<image>\nand <image>?"), ("gpt", "c")]
    assert first(both, 2, "s") == both
    with pytest.raises(BadSample, match=r"s: 2 <image> placeholder\(s\) for 1 image"):
        first(both, 1, "s")
    _, tokens, _ = encoded("v1", [("human", "what is <image>?"), ("gpt", "a word")], images=0)
    assert IMAGE_TOKEN_INDEX not in tokens.ids


@pytest.mark.parametrize(
    "talk, message",
    [
        ("text", "must be a list"),
        ([{"from": "human", "value": "a"}], "no question with an answer"),
        (
            [{"from": "human", "value": "a"}, {"from": "human", "value": "b"}, {"from": "gpt", "value": "c"}],
            "alternate",
        ),
        ([{"from": "human", "value": "a"}, {"from": "gpt", "value": ""}], "turn 2 is an empty answer"),
    ],
)
def test_rows_that_are_no_conversation_are_named(talk, message):
    with pytest.raises(BadSample, match=f"^row 7: .*{message}"):
        conversations.turns_of({"conversations": talk}, "row 7")


def test_a_first_answer_and_a_last_question_are_left_out():
    talk = [{"from": who, "value": who} for who in ("gpt", "human", "gpt", "human")]
    assert conversations.turns_of({"conversations": talk}, "s") == [("human", "human"), ("gpt", "gpt")]


def test_a_token_across_the_border_of_an_answer_is_an_error():
    tokenizer = tokenizer_of("v1")
    prompt = conversations.Prompt("USER: x ASSISTANT: red</s>", [(12, 26)])  # in the middle of ASSISTANT
    with pytest.raises(BadSample, match=r"sample 'a': label mismatch: the token ' ASSISTANT' lies across"):
        conversations.tokenize(prompt, tokenizer, 0, "sample 'a'")


def test_a_template_that_the_tokenizer_does_not_know_is_refused(base, data, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        run(base, data, tmp_path, "--version", "qwen_1_5")
    assert stop.value.code == 2
    assert "'<|im_end|>', which this tokenizer splits" in capsys.readouterr().err


def run(base, data, out, *more):
    words = ["--model_name_or_path", base, "--data_path", data / "data.json", "--image_folder", data]
    train.main([str(word) for word in (*words, "--output_dir", out, "--report_to", "none", *more)])


def test_a_long_sample_is_cut_behind_its_images():
    _, tokens, tokenizer = encoded("v1", TWO_TURNS)
    learned = (tokens.labels != IGNORE_INDEX).nonzero().flatten().tolist()
    limit = learned[2] + PATCHES - 1 + 1  # the third token to learn is the last one that fits
    left, images = conversations.cut(tokens, [PATCHES], limit, "s")
    assert images == 1 and len(left.ids) == learned[2] + 1
    assert torch.equal(left.ids, tokens.ids[: learned[2] + 1])
    with pytest.raises(BadSample, match=r"s: of \d+ tokens the first 50 .* hold no answer"):
        conversations.cut(tokens, [PATCHES], 50, "s")


# The sampler.


def test_steps_are_of_one_modality_and_evenly_long():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 300, (100,), generator=generator).tolist()
    lengths = [-length if k % 3 == 0 else length for k, length in enumerate(lengths)]
    batch, batches = 4, 3
    order = sampling.by_modality_and_length(lengths, batch, batches, generator)
    assert sorted(order) == list(range(100))
    steps = [order[start : start + batch * batches] for start in range(0, 100, batch * batches)]
    mixed = [len({lengths[k] > 0 for k in step}) > 1 for step in steps]
    assert not any(mixed[:7]) and mixed[-2:] == [True, True]  # 66 = 5 * 12 + 6 images, 34 = 2 * 12 + 10 texts
    for step in steps[:7]:
        sums = [sum(abs(lengths[k]) for k in step[start : start + batch]) for start in range(0, len(step), batch)]
        longest = max(abs(lengths[k]) for k in step)
        assert max(sums) - min(sums) <= longest
    with pytest.raises(ValueError, match="length 0"):
        sampling.by_modality_and_length([1, 0], 1, 1, generator)


def test_even_parts_by_hand():
    # Dealt out longest first to the part with the fewest words: 9 | 8 | then 7 to the second, 1 to the first.
    assert sampling._even_parts([0, 1, 2, 3], [8, 9, 1, 7], 2) == [[1, 2], [0, 3]]


def test_the_order_is_that_of_the_seed_and_the_epoch():
    def order(seed: int, epoch: int) -> list[int]:
        sampler = sampling.EpochSampler(20, lambda g: sampling.shuffled(range(20), g), seed)
        sampler.set_epoch(epoch)
        torch.rand(seed + 1)  # draws of others change nothing
        return list(sampler)

    assert order(1, 0) == order(1, 0) and sorted(order(1, 0)) == list(range(20))
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


# What learns, and at which rate.


def learned_names(learner) -> set[str]:
    return {name for name, parameter in learner.llava.named_parameters() if parameter.requires_grad}


def test_what_each_stage_trains(base, data, tmp_path):
    def learner(*more: str):
        return load_learner(plan(arguments_of(base, data, tmp_path, *more)))

    one = learner("--tune_mm_mlp_adapter", "True", "--version", "plain")
    assert one.saved == "projector"
    assert learned_names(one) == {f"model.mm_projector.{k}.{kind}" for k in (0, 2) for kind in ("weight", "bias")}
    two = learner()
    assert two.saved == "full" and not any("vision_tower" in name for name in learned_names(two))
    assert {"lm_head.weight", "model.embed_tokens.weight", "model.mm_projector.0.weight"} < learned_names(two)
    tower = {name for name in learned_names(learner("--mm_vision_tower_lr", "2e-6")) if "vision_tower" in name}
    assert any("embeddings" in name for name in tower) and any("layers.1." in name for name in tower)
    assert not any("layers.2." in name or "post_layernorm" in name for name in tower)  # select_layer is -2 of 3 layers
    lora = learner("--lora_enable", "True", "--lora_r", "2")
    names = learned_names(lora)
    assert lora.saved == "adapter" and {name.split("lora_")[0] for name in names if "lora" not in name} == {
        f"model.mm_projector.{k}.{kind}" for k in (0, 2) for kind in ("weight", "bias")
    }
    assert sum("lora_A" in name for name in names) == 4 * 7 and not any(
        "lora" in name and ("tower" in name or "head" in name) for name in names
    )


def test_the_optimizers_groups(base, data, tmp_path):
    more = ("--mm_projector_lr", "3e-3", "--mm_vision_tower_lr", "2e-6", "--weight_decay", "0.1")
    arguments = arguments_of(base, data, tmp_path, *more)
    learner = load_learner(plan(arguments))
    decayed = [name for name, _ in learner.model.named_parameters() if name.endswith("weight") and "norm" not in name]
    groups = parameter_groups(learner.model, arguments.training, decayed)
    names = {parameter: name for name, parameter in learner.model.named_parameters()}
    found = {
        (part, group["weight_decay"]): group["lr"]
        for group in groups
        for part in {next(p for p in ("vision_tower", "mm_projector", "") if p in names[q]) for q in group["params"]}
    }
    assert found == {
        ("", 0.1): 1e-2,
        ("", 0.0): 1e-2,
        ("mm_projector", 0.1): 3e-3,
        ("mm_projector", 0.0): 3e-3,
        ("vision_tower", 0.1): 2e-6,
        ("vision_tower", 0.0): 2e-6,
    }
    assert sum(len(group["params"]) for group in groups) == len(learned_names(learner))


# Whole runs.

STAGES = {
    "projector": ("--tune_mm_mlp_adapter", "True", "--version", "plain"),
    "full": ("--group_by_modality_length", "True", "--mm_vision_tower_lr", "1e-3"),
    "adapter": ("--lora_enable", "True", "--lora_r", "2", "--mm_projector_lr", "1e-3"),
}


class StopAfter(TrainerCallback):
    """The end of a run by its third step, as a signal would have it."""

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = state.global_step == STEPS // 2


def interrupted(arguments) -> None:
    class Interrupted(train.LlavaTrainer):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs, callbacks=[StopAfter()])

    train.train(arguments, Interrupted)


@torch.no_grad()
def logits_of(model, tokenizer) -> torch.Tensor:
    ids = tokenizer_image_token("USER: <image>\nWhat color? ASSISTANT:", tokenizer, return_tensors="pt")[None]
    pixels = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    return model.eval()(ids, images=pixels).logits


@pytest.mark.parametrize("stage", STAGES)
def test_interrupted_and_resumed_equals_undisturbed(base, data, tmp_path, stage):
    """Weights, optimizer, sampler, dropout, the drawn budgets; a checkpoint loads as any LLaVA, on its base."""
    file = "captions.json" if stage == "projector" else "data.json"
    more = (*STAGES[stage], "--strategy", "dart", "--keep", "8-30")

    def arguments(name: str):
        return arguments_of(base, data, tmp_path / name, *more, file=file)

    whole = train.train(arguments("whole"))
    interrupted(arguments("parts"))
    assert not (tmp_path / "parts" / f"checkpoint-{STEPS}").exists()
    # What a kill in the middle of saving leaves behind is no checkpoint.
    (tmp_path / "parts" / "checkpoint-5").mkdir()
    resumed = train.train(arguments("parts"))
    assert len(losses_of(whole)) == STEPS and losses_of(resumed) == losses_of(whole)
    assert losses_of(train.train(arguments("parts"))) == losses_of(whole)  # a finished run has no more steps
    for (name, one), (_, two) in zip(whole.model.named_parameters(), resumed.model.named_parameters(), strict=True):
        assert torch.equal(one, two), name
    budgets = [entry["visual_tokens_kept"] for entry in whole.state.log_history if "visual_tokens_kept" in entry]
    assert len(set(budgets)) > 1 and all(0 < kept < PATCHES for kept in budgets)

    if stage == "adapter":
        whole.model.merge_adapter()
    wanted = logits_of(whole.learner.llava, whole.learner.tokenizer)
    for folder in (tmp_path / "whole", tmp_path / "parts" / f"checkpoint-{STEPS}"):
        on = None if stage == "full" else str(base)
        tokenizer, model, _, _ = load_pretrained_model(str(folder), on, device="cpu")
        torch.testing.assert_close(logits_of(model, tokenizer), wanted, atol=1e-5, rtol=0)
    if stage == "full":
        before = load_pretrained_model(str(base), device="cpu")[1].get_vision_tower().state_dict()
        after = whole.learner.llava.get_vision_tower().state_dict()
        assert any(not torch.equal(before[name], after[name]) for name in before)


def test_the_files_and_keys_of_checkpoints(base, data, tmp_path):
    runs = {}
    for stage, file in (("projector", "captions.json"), ("adapter", "data.json")):
        out = tmp_path / stage
        train.train(arguments_of(base, data, out, *STAGES[stage], "--max_steps", "2", "--save_steps", "1", file=file))
        for folder in (out, out / "checkpoint-1"):
            assert (folder / "config.json").is_file()
            name = "mm_projector.bin" if stage == "projector" else "non_lora_trainables.bin"
            runs.setdefault(stage, set(torch.load(folder / name, weights_only=True)))
        assert (out / "checkpoint-1" / "adapter_model.safetensors").is_file() == (stage == "adapter")
        assert not (out / "model.safetensors").exists()
    names = {f"model.mm_projector.{k}.{kind}" for k in (0, 2) for kind in ("weight", "bias")}
    assert runs["projector"] == names
    assert runs["adapter"] == {f"base_model.model.{name}" for name in names}


@pytest.mark.parametrize("stage", ["adapter", "projector"])
def test_merging_does_not_ask_for_the_folders_name(base, data, tmp_path, stage):
    """LLaVA's wants "llava" and "lora" in it, and else looks for a projector alone."""
    trained, merged = tmp_path / "number 7", tmp_path / "whole"
    file = "captions.json" if stage == "projector" else "data.json"
    run = train.train(arguments_of(base, data, trained, *STAGES[stage], "--max_steps", "2", file=file))
    words = ["--model-path", trained, "--model-base", base, "--save-model-path", merged, "--torch-dtype", "float32"]
    merge_lora_weights.main([str(word) for word in words])
    if stage == "adapter":
        run.model.merge_adapter()
    wanted = logits_of(run.learner.llava, run.learner.tokenizer)
    tokenizer, start, _, _ = load_pretrained_model(str(base), device="cpu")
    assert (logits_of(start, tokenizer) - wanted).abs().max() > 0.01
    shutil.rmtree(trained)  # the merged model needs neither
    tokenizer, model, _, _ = load_pretrained_model(str(merged), device="cpu")
    torch.testing.assert_close(logits_of(model, tokenizer), wanted, atol=1e-5, rtol=0)


def test_stage_2_starts_from_a_language_model_and_stage_1(base, data, tmp_path):
    """A language model without eyes, its tower named by the user; the projector of stage 1 comes from its file."""
    llm = tmp_path / "llm"
    shutil.copytree(base, llm)
    config = {k: v for k, v in json.loads((base / "config.json").read_text()).items() if "mm" not in k}
    (llm / "config.json").write_text(
        json.dumps(config | {"model_type": "llama", "architectures": ["LlamaForCausalLM"]})
    )
    model = load_pretrained_model(str(base), device="cpu")[1]
    text = {name: value for name, value in model.state_dict().items() if "tower" not in name and "mm_" not in name}
    save_file(text, llm / "model.safetensors", {"format": "pt"})
    tower = ("--vision_tower", llm / "tower", "--max_steps", "2")
    one = train.train(arguments_of(llm, data, tmp_path / "1", *tower, *STAGES["projector"], file="captions.json"))
    projector = tmp_path / "1" / "mm_projector.bin"
    arguments = arguments_of(llm, data, tmp_path / "2", *tower, "--pretrain_mm_mlp_adapter", projector)
    start = load_learner(plan(arguments)).llava
    assert torch.equal(start.model.mm_projector[0].weight, one.learner.llava.model.mm_projector[0].weight)
    assert start.config.mm_hidden_size == 16 and start.config.mm_projector_type == "mlp2x_gelu"
    two = train.train(arguments)
    shutil.move(llm / "tower", tmp_path / "away")  # the checkpoint has what it needs
    tokenizer, loaded, _, _ = load_pretrained_model(str(tmp_path / "2"), device="cpu")
    torch.testing.assert_close(logits_of(loaded, tokenizer), logits_of(two.learner.llava, tokenizer), atol=1e-5, rtol=0)
    with pytest.raises(UserError, match="--vision_tower is missing"):
        plan(arguments_of(llm, data, tmp_path / "3"))


def test_accumulated_batches_and_checkpointed_layers_change_nothing(base, data, tmp_path):
    """The loss of a step is the mean over its learned tokens, however the step is shared out."""
    one = ("--per_device_train_batch_size", "4", "--max_steps", "3")
    wanted = losses_of(train.train(arguments_of(base, data, tmp_path / "one", *one)))
    two = ("--gradient_accumulation_steps", "2", "--max_steps", "3", "--gradient_checkpointing", "True")
    got = losses_of(train.train(arguments_of(base, data, tmp_path / "two", *two)))
    assert got == pytest.approx(wanted, rel=1e-4)


def test_gradients_with_pruning_are_exact_and_text_alone_reaches_the_projector(base, data, tmp_path):
    """Unpruned, with a mask in which layers after the stage do not see what was dropped, the gradients are the same."""
    known = plan(arguments_of(base, data, tmp_path))
    learner, dataset = load_learner(known), train.dataset_of(known)
    model = learner.llava.train()
    batch = collate([dataset[1]])
    batch.pop("skipped")

    def gradients(**more):
        model.zero_grad()
        model(**more).loss.backward()
        return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}

    with dart.prune(model, dart.DartConfig(keep=12)) as handle:
        pruned = gradients(**batch)
    kept = handle.last.rows[0]
    assert handle.last.visual_after[0] < PATCHES
    merged = model.merge(batch["input_ids"], batch["images"], batch["attention_mask"], batch["labels"])
    length = merged.inputs_embeds.shape[1]
    seen = torch.zeros(length, dtype=torch.bool).index_fill(0, kept, True)
    causal = torch.ones(length, length, dtype=torch.bool).tril()

    def masked(module, args, kwargs):
        return args, {**kwargs, "attention_mask": (causal & seen)[None, None]}

    hooks = [
        layer.register_forward_pre_hook(masked, with_kwargs=True) for layer in model.model.layers[handle.config.layer :]
    ]
    wanted = gradients(**batch)
    for hook in hooks:
        hook.remove()
    assert set(pruned) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(pruned[name], value, atol=1e-5, rtol=1e-3, msg=name)

    texts = collate([next(s for s in map(dataset.__getitem__, range(len(dataset))) if not s["images"])])
    texts.pop("skipped")
    assert texts["images"] is None
    found = gradients(**texts)
    assert set(found) == set(wanted)
    assert all(bool((value == 0).all()) for name, value in found.items() if "mm_projector" in name)


def test_gradients_of_pictures_and_of_text_arrive_in_one_order(base, data, tmp_path):
    """ZeRO adds up across processes whatever gradient comes next: with two orders it would mix parameters up."""
    arguments = arguments_of(base, data, tmp_path, "--mm_vision_tower_lr", "1e-3")
    known = plan(arguments)
    learner, dataset = load_learner(known), train.dataset_of(known)
    model = learner.llava.train()
    samples = [dataset[k] for k in range(len(dataset))]
    orders = []
    for batch in ([s for s in samples if s["images"]][:2], [s for s in samples if not s["images"]][:2]):
        arrived: list[str] = []
        hooks = [
            parameter.register_post_accumulate_grad_hook(lambda _, name=name, arrived=arrived: arrived.append(name))
            for name, parameter in model.named_parameters()
            if parameter.requires_grad
        ]
        inputs = collate(batch)
        inputs.pop("skipped")
        model(**inputs).loss.backward()
        orders.append(arrived)
        for hook in hooks:
            hook.remove()
    assert orders[0] == orders[1] and set(orders[0]) == learned_names(learner)


# Pictures.


@pytest.fixture
def torn(data, tmp_path) -> Path:
    """`data` with a picture that is missing and one that is cut off."""
    folder = shutil.copytree(data, tmp_path / "torn")
    (folder / "2.png").unlink()
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:40])
    return folder


def test_missing_and_broken_pictures_are_refused_by_name(base, torn, tmp_path, capsys):
    with pytest.raises(UserError, match=r"1 of 13 rows .*sample 'image-2' \(2\.png\); --on_bad_sample skip"):
        train.train(arguments_of(base, torn, tmp_path / "out"))
    Image.new("RGB", (90, 84)).save(torn / "2.png")
    with pytest.raises(BadSample, match=r"sample 'image-3': image file .*3\.png cannot be read .*--on_bad_sample skip"):
        train.train(arguments_of(base, torn, tmp_path / "out", "--max_steps", "7"))


def test_missing_and_broken_pictures_are_skipped_and_counted(base, torn, tmp_path, capsys):
    run(base, torn, tmp_path / "out", "--on_bad_sample", "skip", "--num_train_epochs", "1", "--disable_tqdm", "True")
    out = capsys.readouterr().out
    assert "left out: sample 'image-2' (2.png)" in out and "left out: sample 'image-3': image file" in out
    assert json.loads(out.splitlines()[-1])["left_out"] == 2
    assert "12 samples, 1 left out" in out


# The command line, and what is checked before the first step.


def test_flags_of_older_releases_are_translated():
    words = ["--evaluation_strategy", "no", "--warmup_ratio=0.03", "--lazy_preprocess", "True", "--logging_dir", "x"]
    today, notes = translate([*words, "--bf16", "True"])
    assert today == ["--eval_strategy", "no", "--warmup_steps=0.03", "--bf16", "True"]
    assert [note.split()[0].rstrip(":") for note in notes] == [
        "--evaluation_strategy",
        "--warmup_ratio",
        "--lazy_preprocess",
        "--logging_dir",
    ]


@pytest.mark.parametrize(
    "more, message",
    [
        (("--colour", "red"), "unknown: --colour red"),
        (("--learning_rate", "fast"), "--learning_rate.*invalid float value: 'fast'"),
        (("--bits", "4"), "--bits 4 can only be trained with --lora_enable"),
        (
            ("--bits", "4", "--lora_enable", "True"),
            "--bits 4 .*needs a CUDA GPU|--bits 4 needs the package bitsandbytes",
        ),
        (("--report_to", "wandb"), "--report_to wandb needs the package wandb"),
        (("--mm_use_im_start_end", "True"), "add words to the vocabulary"),
        (("--version", "v7"), "unknown conversation template 'v7'"),
        (("--mm_projector_type", "linear"), "--mm_projector_type is 'linear', but the checkpoint .* 'mlp2x_gelu'"),
        (("--freeze_backbone", "True", "--freeze_mm_mlp_adapter", "True"), "nothing is left to train"),
        (("--pretrain_mm_mlp_adapter", "gone.bin"), "--pretrain_mm_mlp_adapter gone.bin does not exist"),
        (("--image_aspect_ratio", "anyres"), "anyres needs --image_grid_pinpoints"),
        (("--strategy", "dart", "--keep", "9-3"), "--keep must be a number of tokens"),
        (("--strategy", "dard"), "--strategy.*dard"),
        (("--resume_from_checkpoint", "True"), "has no checkpoint to go on from"),
        (("--data_path", "gone.json"), "gone.json does not exist"),
    ],
)
def test_mistakes_are_one_line_before_weights_are_read(base, data, tmp_path, capsys, monkeypatch, more, message):
    if "nothing is left" not in message:
        monkeypatch.setattr(train, "load_learner", None)
    with pytest.raises(SystemExit) as stop:
        run(base, data, tmp_path / "out", *more)
    error = capsys.readouterr().err.splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("error: ")
    assert re.search(message, error), error


def test_qlora_needs_a_gpu_then_bitsandbytes(base, data, tmp_path, monkeypatch):
    training = arguments_of(base, data, tmp_path).training
    training.bits, training.lora_enable = 4, True
    missing = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "bitsandbytes" else missing(name, *rest)
    )
    for there, message in ((False, "needs a CUDA GPU, and torch sees none: use --bits 16"), (True, "quant")):
        monkeypatch.setattr("torch.cuda.is_available", lambda there=there: there)
        with pytest.raises(UserError, match=f"^--bits 4 .*{message}"):
            _check_lora(training)


def test_what_a_run_would_fail_at_in_its_end_is_found_before(base, data, tmp_path, monkeypatch):
    learner = load_learner(plan(arguments_of(base, data, tmp_path)))
    learner.llava.generation_config.temperature = 0.9  # as Vicuna's, without do_sample
    assert "do_sample is set to True" in checkpoints.check_saving(learner, str(tmp_path / "out"), True)[0]
    assert checkpoints.check_saving(learner, str(tmp_path / "out"), True) == []
    assert list((tmp_path / "out").iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="a checkpoint cannot be saved there"):
        checkpoints.check_saving(learner, str(tmp_path / "file"), True)
    monkeypatch.setattr(checkpoints.shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match="0.0 GB free, and a checkpoint takes"):
        checkpoints.check_saving(learner, str(tmp_path / "out"), True)


def test_budgets_depend_on_the_seed_and_the_step_alone():
    budgets = [drawn(range(64, 193), 0, step) for step in range(50)]
    assert budgets == [drawn(range(64, 193), 0, step) for step in range(50)]
    assert min(budgets) >= 64 and max(budgets) <= 192 and len(set(budgets)) > 25
    assert budgets != [drawn(range(64, 193), 1, step) for step in range(50)]
    assert drawn(range(128, 129), 0, 7) == 128


# The scripts.


def script(path: Path, *flags: str, **environment: str) -> subprocess.CompletedProcess[str]:
    ours = ("MODEL", "DATA_PATH", "IMAGE_FOLDER", "OUT", "NPROC", "DEEPSPEED", "PROJECTOR", "VISION_TOWER")
    env = (
        {key: value for key, value in os.environ.items() if key not in ours} | {"PYTHON": sys.executable} | environment
    )
    command = ["bash", str(path), *flags]
    return subprocess.run(command, cwd="/", env=env, capture_output=True, text=True, timeout=LIMIT_SECONDS)


@pytest.fixture(scope="module")
def stub(tmp_path_factory) -> str:
    """An interpreter that prints its arguments, and zero for what a script asks of the machine."""
    path = tmp_path_factory.mktemp("bin") / "python"
    path.write_text(f"""#!{sys.executable}
import json, sys
print(0 if sys.argv[1] == "-c" else json.dumps(sys.argv[1:]))
""")
    path.chmod(0o755)
    return str(path)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_the_flags_of_every_script_are_llavas(path, stub, tmp_path):
    place = {"DATA_PATH": "data.json", "IMAGE_FOLDER": "images", "OUT": str(tmp_path), "NPROC": "1", "PYTHON": stub}
    result = script(path, "--learning_rate", "0.5", MODEL="llm", PROJECTOR="mm_projector.bin", **place)
    assert result.returncode == 0, result.stderr
    *said, words = result.stdout.splitlines()
    module, words = json.loads(words)[1], json.loads(words)[2:]
    arguments = parse(words)
    assert module == "llava.train.train_mem" and said == ["no GPU: on the CPU in 1 process(es)"]
    assert arguments.model.model_name_or_path == "llm" and arguments.training.learning_rate == 0.5
    assert arguments.model.version == ("plain" if path.stem == "pretrain" else "v1")
    assert arguments.model.tune_mm_mlp_adapter == (path.stem == "pretrain")
    assert arguments.training.lora_enable == path.stem.endswith("lora")
    assert arguments.training.warmup_steps == 0.03 and arguments.training.bf16


def test_a_script_says_what_it_trains_first(stub, tmp_path):
    result = script(ROOT / "scripts/v1_5/pretrain.sh", PYTHON=stub, OUT=str(tmp_path))
    assert result.returncode == 0, result.stderr
    first, second, *made, third, words = result.stdout.splitlines()  # made: on first use, the data
    assert "playground/models/llava-tiny" in first and "playground/data/eval/llava-tiny-train" in second
    assert (
        len(made) <= 1 and third == "no GPU: on the CPU in 2 process(es), DDP: the package deepspeed is not installed"
    )
    assert json.loads(words)[:4] == ["-m", "llava.train.launch", "--standalone", "--nproc_per_node"]
    missing = script(ROOT / "scripts/v1_5/finetune.sh", PYTHON=stub, MODEL="llm")
    assert missing.returncode == 2 and missing.stderr.startswith("error: DATA_PATH is not set")


def test_a_mistake_in_several_processes_is_its_line_and_its_code(tmp_path):
    lines = ["import os, sys, time", "time.sleep(60 * (os.environ['RANK'] == '0'))", "sys.exit(print('no') or 2)"]
    (tmp_path / "mistake.py").write_text("\n".join(lines))
    words = ["-m", "llava.train.launch", "--standalone", "--nproc_per_node", "2", str(tmp_path / "mistake.py")]
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    result = subprocess.run([sys.executable, *words], env=env, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    assert result.returncode == 2
    assert result.stdout == "no\n" and result.stderr == ""


def test_two_processes_equal_one(base, data, tmp_path):
    """Pictures on one of them and text on the other, too; through a script."""
    more = ("--max_steps", "3", "--save_steps", "3", "--bf16", "False", "--dataloader_num_workers", "0")
    place = {"MODEL": str(base), "DATA_PATH": str(data / "data.json"), "IMAGE_FOLDER": str(data), "DEEPSPEED": "none"}
    flags = (*more, "--image_aspect_ratio", "square", "--group_by_modality_length", "False")
    place |= {"NPROC": "2", "OUT": str(tmp_path / "two")}
    two = script(ROOT / "scripts/v1_5/finetune.sh", *flags, "--per_device_train_batch_size", "1", **place)
    assert two.returncode == 0, two.stderr
    recipe = ("--learning_rate", "2e-5", "--lr_scheduler_type", "cosine")
    one = train.train(arguments_of(base, data, tmp_path / "one", *flags, *recipe))
    state = json.loads((tmp_path / "two" / "trainer_state.json").read_text())
    got = [entry["loss"] for entry in state["log_history"] if "loss" in entry]
    assert got == pytest.approx(losses_of(one), rel=1e-5)
    assert json.loads(two.stdout.splitlines()[-1])["steps"] == 3
