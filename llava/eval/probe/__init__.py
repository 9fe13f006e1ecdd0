"""Probe sets: made-up images whose answer-carrying tokens are known; see docs/data.md."""
