"""LLaVA's training recipe on transformers' Trainer: `python -m llava.train.train` (docs/training.md)."""
