"""LLaVA-NeXT on Qwen-1.5 and 2 (transformers' Qwen2), with DART in place."""

from __future__ import annotations

from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen2Model

from llava.model.language_model.llava_causal import LlavaCausalMixin, LlavaConfigMixin, LlavaDecoderMixin


class LlavaQwenConfig(LlavaConfigMixin, Qwen2Config):
    """Qwen2's config with LLaVA's mm_* entries."""

    model_type = "llava_qwen"


class LlavaQwenModel(LlavaDecoderMixin, Qwen2Model):
    """Qwen2's decoder with the vision modules beside it."""

    config_class = LlavaQwenConfig


class LlavaQwenForCausalLM(LlavaCausalMixin, Qwen2ForCausalLM):
    """LLaVA-NeXT on Qwen weights in their original layout; images and DART are `LlavaCausalMixin`'s."""

    config_class = LlavaQwenConfig
    _keys_to_ignore_on_load_unexpected = [r"rotary_emb\.inv_freq", r"embeddings\.position_ids"]

    def __init__(self, config: LlavaQwenConfig):
        super(Qwen2ForCausalLM, self).__init__(config)
        self.set_up(LlavaQwenModel(config), config)


AutoConfig.register(LlavaQwenConfig.model_type, LlavaQwenConfig)
AutoModelForCausalLM.register(LlavaQwenConfig, LlavaQwenForCausalLM)
