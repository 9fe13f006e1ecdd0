"""A tiny random model, with inputs, for every image-text-to-text model type of the installed transformers.

    case = make("qwen2_vl")
    case.model.generate(**case.inputs(images=2), max_new_tokens=3)

A family is one function in a file of this folder; files are found by themselves. `tiny` makes the model from the
family's own config classes with the small sizes of `DECODER` and `ENCODER`; a `Picture` says which tokens and tensors
an image has.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cache
from itertools import cycle, islice

import torch
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

# Token ids: text is drawn from 3 to 99.
PAD, BOS, EOS, TEXT_END = 0, 1, 2, 100
IMAGE, VIDEO, AUDIO, START, END = 120, 121, 122, 123, 124
VOCABULARY = 128
SIZE, PATCH = 24, 4  # pixels along an edge
WIDTH, HEADS, HEAD_DIM, LAYERS = 32, 4, 8, 6
STD = 0.2

DECODER = {
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "head_dim": HEAD_DIM,
    "max_position_embeddings": 512,
    "sliding_window": 16,
    "initializer_range": STD,
    "pad_token_id": PAD,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "linear_key_head_dim": HEAD_DIM,
    "linear_value_head_dim": HEAD_DIM,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": HEADS,
    "image_token_id": IMAGE,
    "image_token_index": IMAGE,
    "video_token_id": VIDEO,
    "video_token_index": VIDEO,
    "audio_token_id": AUDIO,
    "audio_token_index": AUDIO,
    "vision_start_token_id": START,
    "vision_end_token_id": END,
    "image_start_token_id": START,
    "image_end_token_id": END,
}
ENCODER = {
    "hidden_size": WIDTH,
    "embed_dim": WIDTH,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "depth": 2,
    "num_attention_heads": HEADS,
    "num_heads": HEADS,
    "num_key_value_heads": HEADS,
    "head_dim": HEAD_DIM,
    "image_size": SIZE,
    "patch_size": PATCH,
    "num_position_embeddings": 64,
    "out_hidden_size": WIDTH,
    "projection_dim": WIDTH,
    "d_model": WIDTH,
    "encoder_layers": 2,
    "encoder_attention_heads": HEADS,
    "encoder_ffn_dim": 64,
    "output_dim": WIDTH,
    "vision_use_head": False,
    "initializer_range": STD,
}
NO_DROPOUT = dict.fromkeys(["dropout", "attention_dropout", "hidden_dropout", "activation_dropout", "layerdrop"], 0.0)
# One-dimensional parameters of linear attention and state space layers: other values than their own are unstable.
KEPT_AS_MADE = ("A_log", "dt_bias")

Rows = dict[str, torch.Tensor]


@dataclass
class Picture:
    """One image (or video) of a row: its token ids, and its tensors, to be concatenated with those of other images."""

    ids: list[int]
    tensors: Rows
    kind: int = 1  # of its placeholders in mm_token_type_ids: 1 image, 2 video


@dataclass
class Case:
    """A family's tiny model and how to make inputs for it. `skip` says why there is none; the rest is empty then."""

    model_type: str = ""
    model: PreTrainedModel | None = None
    # (number of the image in its row, generator) -> its tokens and tensors; images differ in size where a family can.
    image: Callable[[int, torch.Generator], Picture] | None = None
    video: Callable[[int, torch.Generator], Picture] | None = None
    image_tokens: tuple[int, ...] = (IMAGE, VIDEO)  # ids of all placeholders that get visual features
    types: str = ""  # name of the input that says what each token is: mm_token_type_ids, token_type_ids or none
    axes: dict[str, tuple[int, int]] = field(default_factory=dict)  # that images and rows are joined along, if not 0
    fills: dict[str, int] = field(default_factory=dict)  # what an input is padded with, where that is not 0
    finish: Callable[[Rows], Rows] = lambda inputs: inputs  # adds inputs that are made from the others
    decoder: str = "model.language_model"
    bidirectional: bool = False  # visual tokens of an image see each other
    deepstack: bool = False  # visual features are added again after the embedding
    per_layer_inputs: bool = False  # decoder layers get embeddings of their own of the token ids
    contiguous: bool = True  # visual tokens of an image lie side by side
    batches: bool = True  # rows of different lengths, padded on the left
    attentions: tuple[str, ...] = ("eager", "sdpa")
    note: str = ""
    known: str = ""  # where transformers' own model with a cache differs from itself without, and why
    skip: str = ""

    def inputs(self, images=1, text_before=5, text_after=7, seed=0, rows=1) -> Rows:
        """Arguments of forward() and generate(): `rows` rows of the same length, each of random text and images."""
        return batch(self, [self._row(self.image, images, text_before, text_after, seed + n) for n in range(rows)])

    def video_inputs(self, videos=1, text_before=5, text_after=7, seed=0) -> Rows:
        return batch(self, [self._row(self.video, videos, text_before, text_after, seed)])

    def _row(self, picture, number, text_before, text_after, seed) -> Rows:
        generator = torch.Generator().manual_seed(seed)
        pictures = [picture(n, generator) for n in range(number)]

        def text(length):
            return torch.randint(EOS + 1, TEXT_END, (length,), generator=generator).tolist()

        ids, kinds = text(text_before), [0] * text_before
        for n, one in enumerate(pictures):
            words = text(1 if n < number - 1 else text_after)
            ids += one.ids + words
            kinds += [one.kind * (token in self.image_tokens) for token in one.ids] + [0] * len(words)
        row = {"input_ids": torch.tensor([ids]), "attention_mask": torch.ones(1, len(ids), dtype=torch.long)}
        if self.types:
            row[self.types] = torch.tensor([kinds])
        for name in pictures[0].tensors if pictures else ():
            row[name] = join(
                [one.tensors[name] for one in pictures], self.axes.get(name, (0, 0))[0], self.fills.get(name, 0)
            )
        return row


def join(tensors: list[torch.Tensor], axis: int, fill: int) -> torch.Tensor:
    """Concatenated along `axis`; the other dimensions padded with `fill` on the right to the longest."""
    sizes = [max(lengths) for lengths in zip(*(tensor.shape for tensor in tensors), strict=True)]
    padded = []
    for tensor in tensors:
        target = [tensor.shape[d] if d == axis else size for d, size in enumerate(sizes)]
        pads = [(0, want - have) for want, have in zip(target, tensor.shape, strict=True)]
        padded.append(torch.nn.functional.pad(tensor, [n for pair in reversed(pads) for n in pair], value=fill))
    return torch.cat(padded, axis)


def batch(case: Case, rows: list[Rows]) -> Rows:
    """Rows of one row each, of any lengths, as one batch padded on the left. Text-only rows have no image tensors."""
    length = max(row["input_ids"].shape[1] for row in rows)
    result = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        values, fill = [row[name] for row in rows if name in row], case.fills.get(name, PAD)
        if name in ("input_ids", "attention_mask", case.types):
            values = [torch.nn.functional.pad(v, (length - v.shape[1], 0), value=fill) for v in values]
        result[name] = join(values, case.axes.get(name, (0, 0))[1], fill)
    return case.finish(result)


def square(tokens: int, size: int = SIZE, before=(), after=(), token: int = IMAGE, name="pixel_values"):
    """Images of one size: `tokens` placeholders, pixels [1, 3, size, size]."""

    def image(number, generator):
        pixels = torch.randn(1, 3, size, size, generator=generator)
        return Picture([*before, *[token] * tokens, *after], {name: pixels})

    return image


def shrink(default: PreTrainedConfig, small: dict, overrides: dict) -> PreTrainedConfig:
    """A new config of `default`'s class with the small values it has a field for, and so on for the configs in it.

    An override of a config is a dict of overrides; `model_type` in it chooses another class.
    """
    small, overrides = small | NO_DROPOUT, dict(overrides)
    if "model_type" in overrides:
        default = CONFIG_MAPPING[overrides.pop("model_type")]()
    values = {}
    for name in (each.name for each in dataclasses.fields(default)):
        value, given = default.__dict__.get(name), overrides.get(name)
        if isinstance(value, PreTrainedConfig) or (isinstance(given, dict) and "model_type" in given):
            sizes = DECODER if name == "text_config" else ENCODER
            values[name] = shrink(value, sizes, overrides.pop(name, {}))
        elif name in small and value is not None:
            values[name] = small[name]
        elif name == "layer_types" and value and len(set(value)) > 1:
            kinds = list(dict.fromkeys(value))
            number = max(LAYERS, 2 + 2 * len(kinds))  # each kind twice after layer 2
            values |= {"layer_types": list(islice(cycle(kinds), number)), "num_hidden_layers": number}
    return type(default)(**values | overrides)


def fill(model: PreTrainedModel, seed: int = 0) -> None:
    """Gives every parameter seeded values that matter, those that are made zero, one or not at all included."""
    generator = torch.Generator().manual_seed(seed)
    norms = {id(p) for m in model.modules() if "Norm" in type(m).__name__ for p in [getattr(m, "weight", None)]}
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            if name.endswith(KEPT_AS_MADE):
                continue
            if id(parameter) in norms:
                centre = 1.0 if parameter.any() else 0.0  # norms that multiply by 1 + weight are made zero
                parameter.uniform_(centre - 0.5, centre + 0.5, generator=generator)
            else:
                parameter.normal_(0, STD, generator=generator)


def tiny(model_type: str, attention: str, **overrides) -> PreTrainedModel:
    """The family's model, float32, for evaluation; `overrides` of its config as in `shrink`."""
    torch.manual_seed(0)
    config = shrink(CONFIG_MAPPING[model_type.split(":")[0]](), DECODER, overrides)
    model = AutoModelForImageTextToText.from_config(config, attn_implementation=attention, dtype=torch.float32).eval()
    fill(model)
    model.generation_config.update(pad_token_id=PAD, eos_token_id=None, do_sample=False)
    return model


def argument(model: PreTrainedModel, *candidates: str) -> str:
    """The first of these names that the model's forward() takes: some have changed from release to release."""
    taken = inspect.signature(model.forward).parameters
    return next(name for name in candidates if name in taken)


FAMILIES: dict[str, Callable[[str, str], Case]] = {}
SKIPPED: dict[str, str] = {}


def family(*model_types: str):
    """Registers a function (name, attention) -> Case for these names: model types, or "model_type:variant"."""

    def register(make_case):
        for model_type in model_types:
            if model_type in FAMILIES:
                raise ValueError(f"{model_type} is registered twice")
            FAMILIES[model_type] = make_case
        return make_case

    return register


def skip(reason: str, *model_types: str) -> None:
    """Records why there is no case for these model types."""
    SKIPPED.update(dict.fromkeys(model_types, reason))


@cache
def _load() -> None:
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def names() -> list[str]:
    """The model types that the installed transformers maps to image-text-to-text, and variants "model_type:variant"."""
    _load()
    types = list(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES)
    return types + [name for name in FAMILIES if ":" in name and name.split(":")[0] in types]


def make(name: str, attention: str = "sdpa") -> Case:
    """The case of one of `names()`; its `skip` is set where there is no model."""
    _load()
    if name in SKIPPED:
        return Case(name, skip=SKIPPED[name])
    if name not in FAMILIES:
        raise ValueError(f"no tiny model for {name}: add one to a file in {__path__[0]}, or say with skip() why not")
    case = FAMILIES[name](name, attention)
    case.model_type = name
    return case
