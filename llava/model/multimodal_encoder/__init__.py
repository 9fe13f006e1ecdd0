"""LLaVA's multimodal encoder."""
