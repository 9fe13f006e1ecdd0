"""LLaVA on transformers' Llama: the original checkpoints' model, with DART switched on by `config.DART_config`."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel

import dart
from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.llava_arch import LlavaMetaForCausalLM
from llava.model.multimodal_encoder.clip_encoder import CLIPVisionTower, find_tower
from llava.model.multimodal_projector.builder import build_vision_projector


class LlavaConfig(LlamaConfig):
    """config.json of LLaVA-1.5: Llama's fields and the mm_* ones."""

    model_type = "llava_llama"

    def to_dict(self) -> dict[str, Any]:
        """Without `DART_config`: how a run prunes is no property of the checkpoint."""
        return {key: value for key, value in super().to_dict().items() if key != "DART_config"}


class LlavaLlamaModel(LlamaModel):
    """The text model with the projector and the vision tower beside it."""

    config_class = LlavaConfig

    def __init__(self, config: LlavaConfig):
        super().__init__(config)
        if getattr(config, "mm_vision_tower", None):
            self.mm_projector = build_vision_projector(config)
        # A vision tower is a part but no child: its weights live in a checkpoint of their own.
        self._tower: list[CLIPVisionTower] = []

    @property
    def vision_tower(self) -> CLIPVisionTower:
        if not self._tower:
            raise ValueError("the vision tower is not loaded; use llava.model.builder.load_pretrained_model")
        return self._tower[0]

    def forward(self, *args: Any, visual_span_ids: torch.Tensor | None = None, **kwargs: Any) -> Any:
        """LlamaModel.forward; `visual_span_ids` (LongTensor [B, S]) is there for dart's hooks to read."""
        return super().forward(*args, **kwargs)


class LlavaLlamaForCausalLM(LlavaMetaForCausalLM, LlamaForCausalLM):
    """Answers from text and pictures. `config.DART_config` (the original's dictionary, or None) is read at every forward."""

    config_class = LlavaConfig

    def __init__(self, config: LlavaConfig):
        super().__init__(config)
        self.model = LlavaLlamaModel(config)
        self._dart: tuple[dict[str, Any], dart.PruneHandle] | None = None
        self.post_init()

    def load_vision_tower(self, checkpoint: str, dtype: torch.dtype, device: Any = None) -> None:
        """Build the tower that the config names and read its weights."""
        tower = CLIPVisionTower(self.config, find_tower(self.config.mm_vision_tower, checkpoint))
        tower.load(dtype)
        self.model._tower = [tower.to(device or self.device).eval()]

    @property
    def dart_handle(self) -> dart.PruneHandle | None:
        """The pruning that `config.DART_config` switched on; None when it is off."""
        self._sync_dart()
        return self._dart[1] if self._dart else None

    def _sync_dart(self) -> None:
        wanted = getattr(self.config, "DART_config", None)
        if self._dart is not None and self._dart[0] != wanted:
            self._dart[1].remove()
            self._dart = None
        if self._dart is None and wanted is not None:
            anyres = getattr(self.config, "image_aspect_ratio", None) == "anyres"
            self._dart = (dict(wanted), dart.prune(self, dart.DartConfig.from_original(wanted, anyres=anyres)))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        images: torch.Tensor | list[torch.Tensor] | None = None,
        image_sizes: list | None = None,
        visual_span_ids: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> Any:
        """Logits of text with pictures.

        input_ids: LongTensor [B, S] with -200 for a picture; images: float [n, 3, H, W] (or a list), in reading order; the logits have one row
        for every token of the merged sequence, fewer with DART. Raises ValueError for labels with DART on (the logits would not line up).
        """
        self._sync_dart()
        if labels is not None and (self._dart is not None or getattr(self.model, "_dart_handle", None) is not None):
            raise ValueError("labels with DART on: the pruned logits do not line up with them; set config.DART_config = None or remove the handle")
        if inputs_embeds is None and images is not None and bool((input_ids == IMAGE_TOKEN_INDEX).any()):
            past = 0 if past_key_values is None else past_key_values.get_seq_length()
            row_mask = attention_mask[:, -input_ids.shape[1] :] if attention_mask is not None else None
            merged = self.merge(input_ids, images, row_mask, labels)
            before = attention_mask[:, :past] if attention_mask is not None and past else merged.attention_mask.new_ones(len(input_ids), past)
            full = torch.cat([before, merged.attention_mask], 1)
            attention_mask = None if attention_mask is None and bool(full.all()) else full
            if position_ids is None and attention_mask is not None:
                position_ids = (full.cumsum(-1) - 1).clamp_min(0)[:, past:]
            else:
                position_ids = None
            input_ids, inputs_embeds, labels, visual_span_ids = None, merged.inputs_embeds, merged.labels, merged.visual_span_ids
        if inputs_embeds is not None:
            kwargs["visual_span_ids"] = visual_span_ids
            input_ids = None
        return super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            labels=labels,
            use_cache=use_cache,
            logits_to_keep=logits_to_keep,
            **kwargs,
        )

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        images: torch.Tensor | list[torch.Tensor] | None = None,
        image_sizes: list | None = None,
        **kwargs: Any,
    ) -> Any:
        """As LLaVA's: token ids with -200 for a picture, and the pictures; returns the new tokens alone when pictures are given."""
        inputs = kwargs.pop("input_ids", inputs)
        if inputs is None or images is None or not bool((inputs == IMAGE_TOKEN_INDEX).any()):
            return super().generate(inputs, **kwargs)
        merged = self.merge(inputs, images, kwargs.pop("attention_mask", None), None)
        cache = kwargs.get("past_key_values")
        past = 0 if cache is None else cache.get_seq_length()
        mask = torch.cat([merged.attention_mask.new_ones(len(inputs), past), merged.attention_mask], 1)
        return super().generate(inputs_embeds=merged.inputs_embeds, attention_mask=mask, visual_span_ids=merged.visual_span_ids, **kwargs)

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, inputs_embeds: torch.Tensor | None = None, visual_span_ids: torch.Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """transformers' own, with the spans passed on in the one forward that carries the embeddings."""
        spans = visual_span_ids
        prepared = super().prepare_inputs_for_generation(input_ids, inputs_embeds=inputs_embeds, **kwargs)
        if prepared.get("inputs_embeds") is not None:
            prepared["visual_span_ids"] = spans
        return prepared


AutoConfig.register("llava_llama", LlavaConfig, exist_ok=True)
AutoModelForCausalLM.register(LlavaConfig, LlavaLlamaForCausalLM, exist_ok=True)
