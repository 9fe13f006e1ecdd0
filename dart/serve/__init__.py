"""`python -m dart serve`: an OpenAI-compatible chat endpoint over a pruned transformers model."""
