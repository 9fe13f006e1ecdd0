"""The LLaVA model classes and their loader."""

from llava.model.language_model.llava_llama import LlavaLlamaConfig, LlavaLlamaForCausalLM

__all__ = ["LlavaLlamaConfig", "LlavaLlamaForCausalLM"]
