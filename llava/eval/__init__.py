"""LLaVA's evaluation: one loop, one file per benchmark, LLaVA's module names as commands."""
