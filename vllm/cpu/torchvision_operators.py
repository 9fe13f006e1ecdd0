"""Lets torchvision be imported beside a torch for CPUs: the one that vLLM for CPUs brings along is built for CUDA.

Its compiled operators cannot be read there; without a declaration of two of them the import of torchvision fails, and
with it that of transformers' processors. They are declared when torchvision is first imported, and have no code: who
calls them gets torch's error. A `.pth` file imports this module in every process of one environment (`make
setup-vllm`), also in the one in which vLLM inspects models.
"""

from __future__ import annotations

import sys
from importlib.abc import MetaPathFinder
from typing import Any

OPERATORS = ("nms", "qnms")


class _Declares(MetaPathFinder):
    """Finds nothing, and is asked before torchvision is read."""

    library: Any = None

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        if name != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch

        if torch.version.cuda is None:
            type(self).library = torch.library.Library("torchvision", "DEF")
            for operator in OPERATORS:
                self.library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


sys.meta_path.insert(0, _Declares())
