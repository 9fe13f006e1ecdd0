"""What LLaVA adds to a causal language model of transformers, whatever the model: pictures, and DART in place.

`model.config.DART_config = {...}` prunes, `None` does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

import dart
from dart.compat import ConfigSwitch
from dart.engine.forward import prompt_of
from dart.engine.layers import cache_argument
from dart.engine.losses import kept_labels
from llava.constants import IMAGE_TOKEN_INDEX
from llava.model.llava_arch import Images, LlavaMetaForCausalLM, add_vision_modules


class LlavaConfigMixin:
    """Before a language model's config class. `DART_config` is a run-time switch and is never written to disk."""

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in super().to_dict().items() if key != "DART_config"}  # type: ignore[misc]


class LlavaDecoderMixin:
    """Before a decoder class: the vision modules beside it, and the spans that `dart`'s adapter reads."""

    def __init__(self, config: Any):
        super().__init__(config)  # type: ignore[call-arg]
        add_vision_modules(self, config)  # type: ignore[arg-type]
        self.post_init()  # type: ignore[attr-defined]

    def forward(
        self, *args: Any, visual_span_ids: torch.Tensor | None = None, **kwargs: Any
    ) -> BaseModelOutputWithPast:
        """As the decoder's. visual_span_ids LongTensor [B, S] is for hooks; the decoder has no use for it."""
        return super().forward(*args, **kwargs)  # type: ignore[misc]


class LlavaCausalMixin(ConfigSwitch, LlavaMetaForCausalLM):
    """Before a causal model class, whose `__init__` is replaced by `set_up` with the decoder that sees."""

    def set_up(self, decoder: nn.Module, config: Any) -> None:
        """The last part of `__init__`: `self.model`, the head."""
        self.model = decoder
        self.cache_name = str(cache_argument(decoder.layers[0]))  # type: ignore[index]  # in this transformers
        self.vocab_size = config.vocab_size
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.post_init()  # type: ignore[attr-defined]

    def _read_dart_config(self, mapping: dict[str, Any]) -> dart.DartConfig:
        """On anyres checkpoints `retain_token_num_for_llava_next` is the budget."""
        anyres = getattr(self.config, "image_aspect_ratio", None) == "anyres"
        return dart.DartConfig.from_original(mapping, anyres=anyres)

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        images: Images | None = None,
        image_sizes: Sequence[Sequence[int]] | None = None,
        visual_span_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """input_ids LongTensor [B, S] with -200 for every picture; images, image_sizes: see `encode_images`.

        With a cache (under either name), input_ids are the new tokens and attention_mask (if any) covers cached and
        new ones. The logits are [B, S', V]: S' counts visual tokens, after pruning only the kept ones. Raises
        ValueError for placeholders without images. num_items_in_batch: what the loss is divided by instead of the
        number of labels, as transformers' Trainer asks.
        """
        items = kwargs.pop("num_items_in_batch", None)
        if inputs_embeds is None and input_ids is not None:
            if images is None and input_ids.shape[1] > 1 and bool((input_ids == IMAGE_TOKEN_INDEX).any()):
                raise ValueError("the prompt has an image placeholder (-200) but images is None: pass images=")
            if images is not None or self.learns_to_see():
                merged = self.merge(input_ids, images, attention_mask, labels, image_sizes)
                input_ids, inputs_embeds, labels = None, merged.inputs_embeds, merged.labels
                attention_mask, visual_span_ids = merged.attention_mask, merged.visual_span_ids
                position_ids = merged.position_ids
        outputs = super().forward(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            visual_span_ids=visual_span_ids,
            **{self.cache_name: past_key_values if cache is None else cache},
            **kwargs,
        )
        if labels is not None:
            labels = kept_labels(labels, outputs.logits.shape[1])
            count = {} if items is None else {"num_items_in_batch": items}
            outputs.loss = self.loss_function(
                logits=outputs.logits, labels=labels, vocab_size=self.config.vocab_size, **count
            )
        return outputs

    @torch.no_grad()
    def generate(  # type: ignore[override]
        self,
        inputs: torch.Tensor | None = None,
        images: Images | None = None,
        image_sizes: Sequence[Sequence[int]] | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate` for prompts [B, S] with pictures (`inputs` or `input_ids`).

        Returns the new tokens only. Rows are padded on the left whatever the tokenizer does. With `past_key_values`
        from an earlier turn, pass the whole conversation and all its pictures: only what is new is computed.
        """
        input_ids = kwargs.pop("input_ids", inputs)
        if input_ids is None or kwargs.get("inputs_embeds") is not None:
            raise ValueError("generate takes input_ids (with -200 for every picture), not inputs_embeds")
        self._sync_dart()
        kwargs.pop("position_ids", None)
        config = kwargs.get("generation_config") or self.generation_config
        chunk = kwargs.get("prefill_chunk_size", getattr(config, "prefill_chunk_size", None))
        with prompt_of(0, chunk is not None, input_ids) as prompt:  # the vision tower runs in `merge`
            merged = self.merge(input_ids, images, kwargs.pop("attention_mask", None), None, image_sizes, "left")
            prompt.length, mask = merged.inputs_embeds.shape[1], merged.attention_mask
            if mask is None:
                mask = torch.ones(merged.inputs_embeds.shape[:2], dtype=torch.long, device=merged.inputs_embeds.device)
            spans = {} if merged.visual_span_ids is None else {"visual_span_ids": merged.visual_span_ids}
            return super().generate(inputs_embeds=merged.inputs_embeds, attention_mask=mask, **spans, **kwargs)

    def prepare_inputs_for_generation(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        inputs_embeds: torch.Tensor | None = None,
        is_first_iteration: bool | None = False,
        visual_span_ids: torch.Tensor | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The spans go with the prefill alone; without a cache every step is one."""
        if inputs_embeds is not None and not is_first_iteration and not kwargs.get("use_cache", True):
            inputs_embeds = torch.cat([inputs_embeds, self.model.embed_tokens(input_ids)], dim=1)
            is_first_iteration = True
            if visual_span_ids is not None:
                visual_span_ids = nn.functional.pad(visual_span_ids, (0, input_ids.shape[1]))
        prepared = super().prepare_inputs_for_generation(
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if visual_span_ids is not None and is_first_iteration:
            spans = visual_span_ids[:, -prepared["inputs_embeds"].shape[1] :]
            prepared["visual_span_ids"] = spans if bool((spans > 0).any()) else None
        return prepared
