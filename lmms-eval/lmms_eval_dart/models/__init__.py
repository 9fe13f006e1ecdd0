"""One file per model of lmms-eval; `base.py` is what they share."""
