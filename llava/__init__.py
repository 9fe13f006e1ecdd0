"""LLaVA's runtime in LLaVA's own module layout: original checkpoints, current transformers, DART in place.

LLaVA's own package has the same name: a warning says when it is installed beside this one.
"""

import warnings

from dart.utils import MIXED, others_with

if _others := others_with("llava"):
    warnings.warn(MIXED.format(", ".join(_others), "llava"), stacklevel=2)
