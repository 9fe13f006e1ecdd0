"""LLaVA's language model."""
