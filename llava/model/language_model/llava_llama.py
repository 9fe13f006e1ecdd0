"""LLaVA on transformers' Llama (Vicuna, Llama 2 and 3, Yi), with DART in place: `model.config.DART_config = {...}`."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, LlamaModel

from llava.model.language_model.llava_causal import LlavaCausalMixin, LlavaConfigMixin, LlavaDecoderMixin


class LlavaLlamaConfig(LlavaConfigMixin, LlamaConfig):
    """Llama's config with LLaVA's mm_* entries."""

    model_type = "llava_llama"


class LlavaLlamaModel(LlavaDecoderMixin, LlamaModel):
    """Llama's decoder with the vision modules beside it."""

    config_class = LlavaLlamaConfig


class LlavaLlamaForCausalLM(LlavaCausalMixin, LlamaForCausalLM):
    """LLaVA-1.5 / 1.6 on Llama weights, in their original layout; images and DART are `LlavaCausalMixin`'s."""

    config_class = LlavaLlamaConfig
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq", r"embeddings\.position_ids"]

    def __init__(self, config: LlavaLlamaConfig):
        super(LlamaForCausalLM, self).__init__(config)
        self.set_up(LlavaLlamaModel(config), config)


AutoConfig.register(LlavaLlamaConfig.model_type, LlavaLlamaConfig)
AutoModelForCausalLM.register(LlavaLlamaConfig, LlavaLlamaForCausalLM)
