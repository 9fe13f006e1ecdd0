"""Small tensors between host and device without a wait of either for the other."""

from __future__ import annotations

import numpy as np
import torch


class HostCopy:
    """A copy to the host that begins now and is waited for when it is read.

    Begun while the device is still busy with what came before (the vision tower, the first layers), it is there by the
    time the host needs it: the layers queued behind it keep the device busy.
    """

    def __init__(self, tensor: torch.Tensor):
        self._arrived: torch.cuda.Event | None = None
        tensor = tensor.detach()
        if tensor.device.type != "cuda":
            self._source = tensor.to("cpu", copy=True)  # what is read later is what was there now
            return
        self._source = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._source.copy_(tensor, non_blocking=True)
        self._arrived = torch.cuda.Event()
        self._arrived.record(torch.cuda.current_stream(tensor.device))

    def numpy(self) -> np.ndarray:
        """The array. Waits for the device, if the copy is not there yet."""
        if self._arrived is not None and not self._arrived.query():
            self._arrived.synchronize()
        return self._source.numpy()


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """The array as a tensor there; from page-locked memory, so that nothing waits for the device."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
