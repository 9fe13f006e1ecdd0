"""Everything that this plugin knows of vLLM's insides.

Two classes do the work for every family. `Pruning` is a prompt processor that puts as many placeholders into the prompt
as tokens will stay, and hands the settings on as one more field of each image. `PrunedModel` drops rows of the vision
tower's output. vLLM's cache of images knows `mm_processor_kwargs`, and so the budget: an image that was asked about
with another budget is another entry, of the cache of features and of the prefix cache.

With M-RoPE a kept token keeps its place of the unpruned prompt, and so does the text: `PrunedMRope`. vLLM's own pruning
of videos (EVS) is not built on: its hook for positions is not there on CPUs, and rounds them in bfloat16 from 256 on.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from typing import Any, ClassVar

import torch
from vllm.model_executor.models.interns1 import (
    InternS1DummyInputsBuilder,
    InternS1ForConditionalGeneration,
    InternS1MultiModalProcessor,
    InternS1ProcessingInfo,
)
from vllm.model_executor.models.llava import (
    LlavaDummyInputsBuilder,
    LlavaForConditionalGeneration,
    LlavaMultiModalProcessor,
    LlavaProcessingInfo,
)
from vllm.model_executor.models.llava_next import (
    LlavaNextForConditionalGeneration,
    LlavaNextMultiModalProcessor,
    LlavaNextProcessingInfo,
)
from vllm.model_executor.models.qwen2_5_vl import (
    Qwen2_5_VLDummyInputsBuilder,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2_5_VLMultiModalProcessor,
    Qwen2_5_VLProcessingInfo,
)
from vllm.model_executor.models.qwen2_vl import (
    Qwen2VLDummyInputsBuilder,
    Qwen2VLForConditionalGeneration,
    Qwen2VLMultiModalProcessor,
    Qwen2VLProcessingInfo,
)
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.parse import DictEmbeddingItems, EmbeddingItems
from vllm.multimodal.processing.processor import PromptUpdateDetails

from dart_vllm import asked_of, settings
from dart_vllm.settings import KEY, config_of, kept_count

MODALITIES = ("image", "video")
EMBEDDED = (DictEmbeddingItems, EmbeddingItems)
AXES = 3  # of M-RoPE: time, height, width
BASE = 128  # digits of positions, exact in bfloat16; two of them hold positions below 16384
DIGITS = 2


def field(modality: str) -> str:
    """The name of the settings among an image's or a video's tensors."""
    return f"{KEY}_{modality}"


def without(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != KEY}


class Pruning:
    """For a class of one's own, before a family's processor."""

    prunes: ClassVar[bool] = True

    def apply(self, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        """vLLM's names of cached images know what the request asks for; here also the server's default: servers with
        different ones may share a cache."""
        asked = asked_of(self, inputs.hf_processor_mm_kwargs)
        if asked is not None:
            inputs = replace(inputs, hf_processor_mm_kwargs={**inputs.hf_processor_mm_kwargs, KEY: asked})
        return super().apply(inputs, *args, **kwargs)  # type: ignore[misc]

    def _apply_hf_processor_main(self, mm_items: Any, hf_kwargs: Mapping[str, object]) -> Any:
        config = config_of(asked_of(self, hf_kwargs))
        if config is not None and any(isinstance(items, EMBEDDED) for items in mm_items.values()):
            raise ValueError(f"{KEY}: ready-made embeddings are not pruned: send the image, or {KEY} false")
        data = super()._apply_hf_processor_main(mm_items, without(hf_kwargs))  # type: ignore[misc]
        for modality, count in mm_items.get_all_counts().items():
            if count and modality in MODALITIES:
                data[field(modality)] = [settings.packed(config)] * count
        return data

    def _get_mm_fields_config(self, hf_inputs: Any, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        fields = dict(super()._get_mm_fields_config(hf_inputs, hf_processor_mm_kwargs))  # type: ignore[misc]
        own = {
            field(modality): MultiModalFieldConfig.batched(modality, keep_on_cpu=True)
            for modality in MODALITIES
            if field(modality) in hf_inputs
        }
        return fields | own

    def _get_prompt_updates(self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, Any], out_mm_kwargs: Any) -> Any:
        config = config_of(asked_of(self, hf_processor_mm_kwargs))
        updates = super()._get_prompt_updates(mm_items, without(hf_processor_mm_kwargs), out_mm_kwargs)  # type: ignore[misc]
        return [replace(update, replacement=partial(_shortened, update.replacement, config)) for update in updates]


def _shortened(replacement: Any, config: Any, item_idx: int) -> Any:
    """The prompt's tokens for what stays of an image or a video: of each part its first placeholders."""
    given = replacement(item_idx) if callable(replacement) else replacement
    if isinstance(given, list):
        given = PromptUpdateDetails.from_seq(given)
    ids, visual = given.full, given.is_embed
    marks = [True] * len(ids) if visual is None else visual(ids).tolist()
    runs = [list(run) for _, run in groupby(zip(ids, marks, strict=True), key=lambda token: token[1])]
    sizes = [len(run) for run in runs if run[0][1]]
    counts = iter(map(kept_count, settings.shared(config, sizes), sizes))
    if config is not None and len({token for token in zip(ids, marks, strict=True) if token[1]}) > 1:
        raise ValueError(f"{KEY}: this model's images stand in the prompt in a way that the plugin does not know")
    return replace(given, full=[token for run in runs for token, _ in (run[: next(counts)] if run[0][1] else run)])


class PrunedModel:
    """For a class of one's own, before a family's model. may_be_others: does the model's name stand for families, too,
    that are not pruned?"""

    may_be_others: ClassVar[bool] = False

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        for wrong, why in self.impossible(vllm_config):
            if wrong:
                raise ValueError(f'{KEY}: does not go with {why} (VLLM_PLUGINS="" takes the plugin off)')
        super().__init__(vllm_config=vllm_config, prefix=prefix)  # type: ignore[call-arg]

    def impossible(self, vllm_config: Any) -> list[tuple[Any, str]]:
        """Whether an option of the engine is set, and why it cannot be."""
        captured = getattr(vllm_config.compilation_config, "cudagraph_mm_encoder", False)
        return [(captured, "cudagraph_mm_encoder: a captured tower gives all tokens")]

    def embed_multimodal(self, **kwargs: Any) -> Any:
        given = {modality: kwargs.pop(field(modality), None) for modality in MODALITIES}
        present = [each for each in given.values() if each is not None]
        if len(present) > 1:
            raise RuntimeError("images and videos are encoded apart: vLLM has changed")
        features = super().embed_multimodal(**kwargs)  # type: ignore[misc]
        if features is None or not len(features) or self.may_be_others and not present:
            return features
        configs = [settings.unpacked(each.flatten()) for each in present[0]]
        places, parts = self.places(len(features), **kwargs), self.parts(len(features), **kwargs)
        if not len(features) == len(configs) == len(places) == len(parts):
            raise RuntimeError(f"{len(features)} features for {len(configs)} images: vLLM has changed")
        return tuple(map(self.pruned, features, configs, places, parts))

    def places(self, count: int, **kwargs: Any) -> Sequence[torch.Tensor | None]:
        """Per image the places [N, axes] of its tokens, from the image's first place on (of its part); None: in a
        row."""
        return [None] * count

    def parts(self, count: int, **kwargs: Any) -> Sequence[int]:
        """Per image or video, in how many equal parts it stands in the prompt."""
        return [1] * count

    def embeddings(self, features: torch.Tensor) -> torch.Tensor:
        """Of one image's features [N, D], what enters the language model's first layer: its tokens are chosen by it."""
        return features

    def pruned(self, features: torch.Tensor, config: Any, places: torch.Tensor | None, parts: int) -> torch.Tensor:
        """The rows of one image's features [N, D] that stay."""
        size = len(features) // parts
        pieces = zip(self.embeddings(features).split(size), settings.shared(config, [size] * parts), strict=True)
        rows = torch.cat(
            [settings.chosen(piece, asked) + size * number for number, (piece, asked) in enumerate(pieces)]
        )
        return (
            features[rows] if places is None else torch.cat([features[rows], digits(places[rows.cpu()], features)], 1)
        )


def digits(places: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """[n, AXES * DIGITS] in the dtype of `like`: each place in base BASE, low digit first."""
    if int(places.max()) >= BASE**DIGITS:
        raise ValueError(f"{KEY}: places up to {int(places.max())}, {BASE**DIGITS - 1} is the most: use shorter videos")
    parts = torch.stack([places // BASE**power % BASE for power in range(DIGITS)], -1)
    return parts.flatten(1).to(like)


def from_digits(columns: torch.Tensor) -> torch.Tensor:
    """int64 [AXES, n] of what `digits` made."""
    parts = columns.round().long().unflatten(1, (AXES, DIGITS))
    return (parts * torch.tensor([BASE**power for power in range(DIGITS)], device=parts.device)).sum(-1).T


class PrunedMRope(PrunedModel):
    """The same where tokens have places in time, height and width.

    A request's positions are made before its features: there a kept token has its image's first place. What it is away
    from it comes with its features and is added in the forward that they go into.
    """

    def __init__(self, *, vllm_config: Any, prefix: str = ""):
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        most = vllm_config.scheduler_config.max_num_batched_tokens
        away = torch.zeros(AXES, most, dtype=torch.long, device=next(self.parameters()).device)  # type: ignore[attr-defined]
        # A buffer, so that a captured CUDA graph reads what the next step writes.
        self.register_buffer("dart_places", away, persistent=False)  # type: ignore[attr-defined]

    def impossible(self, vllm_config: Any) -> list[tuple[Any, str]]:
        parallel, multimodal = vllm_config.parallel_config, vllm_config.model_config.multimodal_config
        return [
            *super().impossible(vllm_config),
            (getattr(multimodal, "video_pruning_rate", None), "video_pruning_rate: both drop tokens"),
            (
                parallel.pipeline_parallel_size > 1,
                "pipeline parallelism (use tensor parallelism): later stages lack places",
            ),
            (getattr(parallel, "enable_dbo", False), "enable_dbo: halves of a batch have places of their own"),
        ]

    def embed_input_ids(
        self, input_ids: torch.Tensor, multimodal_embeddings: Any = None, **kwargs: Any
    ) -> torch.Tensor:
        self.dart_places.zero_()  # type: ignore[attr-defined]
        if multimodal_embeddings is not None and len(multimodal_embeddings):
            columns = AXES * DIGITS
            visual = kwargs["is_multimodal"].to(input_ids.device).nonzero().flatten()
            places = torch.cat([from_digits(each[:, -columns:]) for each in multimodal_embeddings], 1)
            self.dart_places[:, visual] = places  # type: ignore[index, attr-defined]
            multimodal_embeddings = [each[:, :-columns] for each in multimodal_embeddings]
        return super().embed_input_ids(input_ids, multimodal_embeddings, **kwargs)  # type: ignore[misc]

    def forward(self, input_ids: Any, positions: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        places = self.dart_places[:, : positions.shape[-1]]  # type: ignore[index, attr-defined]
        return super().forward(input_ids, positions + places, *args, **kwargs)  # type: ignore[misc]

    def places(self, count: int, **kwargs: Any) -> Sequence[torch.Tensor]:
        rates = _numbers(kwargs.get("second_per_grid_ts"), count)
        speed = getattr(self.config.vision_config, "tokens_per_second", 1.0)  # type: ignore[attr-defined]
        if "image_grid_thw" in kwargs:
            rates = [1 / speed] * count
        return [_grid(t, h, w, rate * speed) for (t, h, w), rate in zip(self.grids(**kwargs), rates, strict=True)]

    def grids(self, **kwargs: Any) -> list[tuple[int, int, int]]:
        """Per image or video the frames, rows and columns of its tokens."""
        (name,) = [name for name in kwargs if name.endswith("_grid_thw")]
        merge = self.config.vision_config.spatial_merge_size  # type: ignore[attr-defined]
        return [(t, h // merge, w // merge) for t, h, w in (each.flatten().tolist() for each in kwargs[name])]

    def get_mrope_input_positions(self, input_tokens: list[int], mm_features: list[Any]) -> tuple[torch.Tensor, int]:
        """int64 [AXES, N] and what is to be added to a later token's index: the text stands where it would in the
        unpruned prompt."""
        parts, done, place = [], 0, 0
        for offset, length, places in self.runs(mm_features):
            parts += [_text(place, offset - done), torch.full((AXES, length), place + offset - done)]
            place += offset - done + places
            done = offset + length
        parts.append(_text(place, len(input_tokens) - done))
        return torch.cat(parts, 1), place - done

    def runs(self, mm_features: list[Any]) -> Iterator[tuple[int, int, int]]:
        """Per image, video or part of one, in the prompt's order: the index of its first token, the number of its
        tokens, and how many places it took unpruned."""
        features = sorted(mm_features, key=lambda each: each.mm_position.offset)
        for feature, (offset, t, h, w, factor) in zip(features, self.iter_mm_grid_thw(features), strict=True):  # type: ignore[attr-defined]
            yield offset, feature.mm_position.length, int(_grid(t, h, w, factor).max()) + 1


def _numbers(values: Any, count: int) -> list[float]:
    return [1.0] * count if values is None else [float(each) for each in values]


def _grid(t: int, h: int, w: int, factor: float) -> torch.Tensor:
    """int64 [t * h * w, AXES]: the places of an image's tokens, or a video's, `factor` places from frame to frame."""
    frames = (torch.arange(t) * factor).long()
    return torch.cartesian_prod(frames, torch.arange(h), torch.arange(w)).view(-1, AXES)


def _text(start: int, length: int) -> torch.Tensor:
    return torch.arange(start, start + length).expand(AXES, -1)


class PruningQwen2VL(Pruning, Qwen2VLMultiModalProcessor):
    pass


class PruningQwen2_5VL(Pruning, Qwen2_5_VLMultiModalProcessor):
    pass


class PruningQwen3VL(Pruning, Qwen3VLMultiModalProcessor):
    pass


class PruningInternVL(Pruning, InternS1MultiModalProcessor):
    pass


class PruningLlava(Pruning, LlavaMultiModalProcessor):
    pass


class PruningLlavaNext(Pruning, LlavaNextMultiModalProcessor):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    PruningQwen2VL, info=Qwen2VLProcessingInfo, dummy_inputs=Qwen2VLDummyInputsBuilder
)
class PrunedQwen2VL(PrunedMRope, Qwen2VLForConditionalGeneration):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    PruningQwen2_5VL, info=Qwen2_5_VLProcessingInfo, dummy_inputs=Qwen2_5_VLDummyInputsBuilder
)
class PrunedQwen2_5VL(PrunedMRope, Qwen2_5_VLForConditionalGeneration):
    pass


@MULTIMODAL_REGISTRY.register_processor(
    PruningQwen3VL, info=Qwen3VLProcessingInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class PrunedQwen3VL(PrunedMRope, Qwen3VLForConditionalGeneration):
    """A video's frames stand apart, each with its time in words before it. A token's features hold what is added
    behind the first layers (DeepStack), too: it goes with its token."""

    def places(self, count: int, **kwargs: Any) -> Sequence[torch.Tensor]:
        return [_grid(1, h, w, 1).repeat(t, 1) for t, h, w in self.grids(**kwargs)]

    def parts(self, count: int, **kwargs: Any) -> Sequence[int]:
        return [t for t, _, _ in self.grids(**kwargs)]

    def embeddings(self, features: torch.Tensor) -> torch.Tensor:
        return features[:, : self.visual_dim]

    def runs(self, mm_features: list[Any]) -> Iterator[tuple[int, int, int]]:
        merge = self.config.vision_config.spatial_merge_size
        for feature in sorted(mm_features, key=lambda each: each.mm_position.offset):
            _, h, w = feature.data[f"{feature.modality}_grid_thw"].data.tolist()
            for first, last in feature.mm_position.extract_embeds_range():
                yield first, last - first + 1, max(h, w) // merge


@MULTIMODAL_REGISTRY.register_processor(
    PruningInternVL, info=InternS1ProcessingInfo, dummy_inputs=InternS1DummyInputsBuilder
)
class PrunedInternVL(PrunedModel, InternS1ForConditionalGeneration):
    """An image's tiles stand in a row, a video's frames apart."""

    def parts(self, count: int, **kwargs: Any) -> Sequence[int]:
        frames = kwargs.get("video_num_patches")
        return super().parts(count) if frames is None else frames.flatten().tolist()


_LLAVA: Any = LlavaForConditionalGeneration._processor_factory  # type: ignore[attr-defined]


def _llava_processor(info: Any, dummy_inputs: Any, **kwargs: Any) -> Any:
    """Pixtral has LLaVA's name, but rows of tokens with ends: not pruned."""
    kind = PruningLlava if isinstance(info, LlavaProcessingInfo) else _LLAVA.processor
    return kind(info, dummy_inputs, **kwargs)


@MULTIMODAL_REGISTRY.register_processor(_llava_processor, info=_LLAVA.info, dummy_inputs=_LLAVA.dummy_inputs)
class PrunedLlava(PrunedModel, LlavaForConditionalGeneration):
    may_be_others = True


@MULTIMODAL_REGISTRY.register_processor(
    PruningLlavaNext, info=LlavaNextProcessingInfo, dummy_inputs=LlavaDummyInputsBuilder
)
class PrunedLlavaNext(PrunedModel, LlavaNextForConditionalGeneration):
    pass
