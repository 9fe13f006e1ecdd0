"""LLaVA's runtime in LLaVA's own module layout: original checkpoints, current transformers, DART in place."""
