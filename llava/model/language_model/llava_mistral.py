"""LLaVA-NeXT on transformers' Mistral (llava-v1.6-mistral-7b), with DART in place."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM, MistralConfig, MistralForCausalLM, MistralModel

from llava.model.language_model.llava_causal import LlavaCausalMixin, LlavaConfigMixin, LlavaDecoderMixin


class LlavaMistralConfig(LlavaConfigMixin, MistralConfig):
    """Mistral's config with LLaVA's mm_* entries."""

    model_type = "llava_mistral"


class LlavaMistralModel(LlavaDecoderMixin, MistralModel):
    """Mistral's decoder with the vision modules beside it."""

    config_class = LlavaMistralConfig


class LlavaMistralForCausalLM(LlavaCausalMixin, MistralForCausalLM):
    """LLaVA-1.6 on Mistral weights in their original layout; images and DART are `LlavaCausalMixin`'s."""

    config_class = LlavaMistralConfig
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq", r"embeddings\.position_ids"]

    def __init__(self, config: LlavaMistralConfig):
        super(MistralForCausalLM, self).__init__(config)
        self.set_up(LlavaMistralModel(config), config)


AutoConfig.register(LlavaMistralConfig.model_type, LlavaMistralConfig)
AutoModelForCausalLM.register(LlavaMistralConfig, LlavaMistralForCausalLM)
