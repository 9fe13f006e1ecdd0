"""A model and how to ask it: through transformers' processors, or through a plug-in.

Other formats are read by entry points of the group `dart.loaders`: functions `load(path, device, dtype, attention)`
with this module's `load`'s parameters (device: a torch.device), that return a `Loaded`, or None for a checkpoint that
is not theirs.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, Protocol

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedConfig
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from transformers.video_utils import VideoMetadata

from dart.media import Video
from dart.utils import UserError, device_of, one_line, plug_ins
from dart.views import Sources, find_views
from dart.viz import View

GROUP = "dart.loaders"
VISUAL_IDS = {"image": ("image_token_id", "image_token_index"), "video": ("video_token_id", "video_token_index")}


@dataclass(frozen=True)
class Prompt:
    """A question as a model takes it.

    inputs: keyword arguments of `generate`, on the model's device; skip: how many tokens it returns before the answer.
    positions: of the visual tokens, in the sequence that the decoder is given; views: makes what they show, in this
    order, or raises ValueError.
    """

    inputs: dict[str, Any]
    skip: int
    positions: list[int]
    views: Callable[[], list[View]]


class Loaded(Protocol):
    """A model that can be asked. tokenizer: decodes its answers."""

    model: Any
    tokenizer: Any

    def prompt(self, messages: list[dict[str, Any]], images: list[Image.Image], videos: list[Video]) -> Prompt:
        """A conversation in transformers' form with `{"type": "image"}` for each image, and so for videos.

        Raises UserError or ValueError for what the model cannot take.
        """
        ...


def load(path: str, device: str | None, dtype: str | None, attention: str | None) -> Loaded:
    """A checkpoint from a folder or the hub.

    device None: a GPU where there is one. dtype None: float32 on a CPU, else the checkpoint's (or the plug-in's
    choice). Raises UserError or ValueError naming what is missing, wrong or not supported.
    """
    place = device_of(device)
    path = os.path.expanduser(path)
    if not os.path.isdir(path) and (path.startswith((".", "/")) or path.count("/") != 1):
        raise UserError(f"model {path} does not exist: expected a folder with a checkpoint, or a hub name")
    try:
        plugins = plug_ins(GROUP)
        for plugin in plugins.values():
            if (loaded := plugin(path, place, dtype, attention)) is not None:
                return loaded
        _check_type(path, sorted(plugins))
        return TransformersModel(path, place, dtype, attention)
    except (UserError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # a broken checkpoint makes libraries raise anything
        raise UserError(f"model {path} cannot be loaded: {one_line(error)}") from error


def _check_type(path: str, plugins: list[str]) -> None:
    """Raises UserError for a model that nothing here reads, before anything large is read."""
    kind = PreTrainedConfig.get_config_dict(path)[0].get("model_type")
    if kind is None:
        raise UserError(f"model {path} has no config.json with a model_type: expected a checkpoint")
    if kind not in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES:
        raise UserError(
            f"model {path} is of model_type {kind!r}, which is no image-text-to-text model of transformers "
            f"{transformers.__version__}; nor does a plug-in read it (entry points {GROUP}: "
            f"{', '.join(plugins) or 'none'}; pip install -e . registers those of this project)"
        )


class TransformersModel:
    """A checkpoint of transformers' image-text-to-text models with its processor and chat template."""

    def __init__(self, path: str, device: torch.device, dtype: str | None, attention: str | None):
        config = AutoConfig.from_pretrained(path, trust_remote_code=False)
        self.processor: Any = AutoProcessor.from_pretrained(path, trust_remote_code=False)
        if getattr(self.processor, "image_processor", None) is None:
            raise UserError(f"model {path} has no image processor: expected preprocessor_config.json in it")
        self.tokenizer = self.processor.tokenizer
        wanted: Any = getattr(torch, dtype) if dtype else (torch.float32 if device.type == "cpu" else "auto")
        placement = {} if device.type == "cpu" else {"device_map": {"": device}}
        loaded: Any = AutoModelForImageTextToText.from_pretrained(
            path, config=config, dtype=wanted, attn_implementation=attention, output_loading_info=True, **placement
        )
        self.model, info = loaded
        if missing := sorted(info["missing_keys"]):
            raise UserError(f"checkpoint {path} lacks weights: {', '.join(missing[:3])} ({len(missing)} in all)")
        self.model.eval()

    def prompt(self, messages: list[dict[str, Any]], images: list[Image.Image], videos: list[Video]) -> Prompt:
        """The prompt of these turns. Raises UserError for what the processor does not take."""
        config = self.model.config
        if videos and getattr(self.processor, "video_processor", None) is None:
            raise UserError(f"models of type {config.model_type} take no videos: give the frames as --image")
        try:
            inputs = self._processed(messages, images, videos)
        except Exception as error:  # processors raise anything for what they do not take
            raise UserError(f"the processor of {config.model_type} refuses this prompt: {one_line(error)}") from error
        ids = inputs["input_ids"][0]
        named = [(f"image {k}", [image]) for k, image in enumerate(images, 1)]
        films = [(f"video {k}", video.frames) for k, video in enumerate(videos, 1)]
        image_mask, video_mask = (self._are(kind, ids) for kind in ("image", "video"))
        if not video_mask.any():  # this family has frames among its images
            named, films = named + films, []
        sources = [
            (mask, kind, shown)
            for mask, kind, shown in ((image_mask, "image", named), (video_mask, "video", films))
            if mask.any()
        ]
        if not sources:
            raise UserError(f"the chat template of this {config.model_type} writes no placeholders for what is shown")
        positions = (image_mask | video_mask).nonzero().flatten().tolist()
        return Prompt(inputs, len(ids), positions, partial(self._views, sources, inputs))

    def _are(self, kind: str, ids: torch.Tensor) -> torch.Tensor:
        """bool [S]: which ids stand for visual tokens of this kind."""
        known = [getattr(self.model.config, name, None) for name in VISUAL_IDS[kind]]
        return torch.isin(ids, torch.tensor([id for id in known if isinstance(id, int)], device=ids.device))

    def _processed(self, messages: list[dict[str, Any]], images: list[Image.Image], videos: list[Video]) -> dict:
        """The processor's tensors, pixels in the model's dtype."""
        template = self.processor.chat_template or self.tokenizer.chat_template
        text = self.processor.apply_chat_template(messages, chat_template=template, add_generation_prompt=True)
        given: dict[str, Any] = {"images": [images]} if images else {}
        if videos:
            given["videos"] = [[np.stack([np.asarray(frame) for frame in video.frames]) for video in videos]]
            given["video_metadata"] = [
                VideoMetadata(total_num_frames=video.total, fps=video.fps, frames_indices=video.indices)
                for video in videos
            ]
            given["do_sample_frames"] = False
        start = self.tokenizer.bos_token
        special = not (start and text.startswith(start))
        read = self.processor(text=[text], add_special_tokens=special, return_tensors="pt", **given)
        return dict(read.to(self.model.device, dtype=self.model.dtype))

    def _views(self, sources: Sequence[Any], inputs: dict[str, Any]) -> list[View]:
        images = self.processor.image_processor
        vision = getattr(self.model.config, "vision_config", None)
        size, patch = (getattr(vision, name, None) for name in ("image_size", "patch_size"))
        facts: dict[str, Any] = {
            "inputs": inputs,
            "mean": getattr(images, "image_mean", None) or [0.0],
            "std": getattr(images, "image_std", None) or [1.0],
            "side": size // patch if isinstance(size, int) and isinstance(patch, int) else None,
            "newlines": any(name.endswith("image_newline") for name, _ in self.model.named_parameters()),
            "class_first": getattr(self.model.config, "vision_feature_select_strategy", None) == "full",
        }
        views: list[View] = []
        for mask, kind, shown in sorted(sources, key=lambda source: int(source[0].long().argmax())):
            runs = [len(list(run)) for token, run in groupby(mask.tolist()) if token]
            names, frames = zip(*shown, strict=True)
            views += find_views(Sources(kind, names, frames, runs, **facts))
        return views
