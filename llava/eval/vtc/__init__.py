"""VTC-Bench's protocol (arXiv 2510.07143), repaired: `python -m llava.eval.suite --protocol vtc`; see docs/vtc.md."""
