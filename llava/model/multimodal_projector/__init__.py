"""LLaVA's multimodal projector."""
