"""Import torchvision beside a torch that it was not built for.

The index's torchvision is built against its CUDA torch. Beside a CPU build of torch its compiled part cannot be loaded,
and the import ends where torchvision describes two operators of that part to torch. Qwen's processors use none of the
compiled part (they resize with torch itself), so the two operators are declared, without code, and the import goes on.
"""

from __future__ import annotations

import importlib
import importlib.util

import torch

UNDECLARED = ("nms", "qnms")
SIGNATURE = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
_kept: list[torch.library.Library] = []  # a declaration lasts as long as its library


def import_torchvision() -> None:
    """Make `import torchvision` work where it is installed; where it loads by itself nothing is changed."""
    if importlib.util.find_spec("torchvision") is None:
        return
    try:
        importlib.import_module("torchvision")
    except RuntimeError as error:
        if "operator torchvision::" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in UNDECLARED:
            library.define(f"{name}{SIGNATURE}")
        _kept.append(library)
        importlib.import_module("torchvision")
