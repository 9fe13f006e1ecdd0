"""What turns one of lmms-eval's model classes into one that prunes."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import torch

import dart
from dart.utils import UserError, is_hub_name
from llava.model.anyres import is_anyres
from lmms_eval_dart.arguments import split
from lmms_eval_dart.one_line import ends_in_one_line
from lmms_eval_dart.tally import Tally
from lmms_eval_dart.visuals import checked_visuals

DOC_TO_VISUAL = 2  # its place in a request's arguments, and doc_to_messages' in a chat model's request
DOC_TO_MESSAGES = 1


class Pruned:
    """Before a model class of lmms-eval: the same model, with DART on it unless `Sparse=False`.

    Modifications: DART's arguments are taken out of `model_args`; without a GPU the device is the CPU unless one is
    named; unreadable input ends the run with one line (a stock model may skip it, or print a traceback).
    """

    ratio_first = False
    dart_handle: dart.PruneHandle | None = None

    @ends_in_one_line
    def __init__(self, **given: Any) -> None:
        known = inspect.signature(super().__init__).parameters
        names = [name for name, each in known.items() if each.kind != each.VAR_KEYWORD]
        arguments, stock = split(self._rename(given), names)
        check_checkpoint(stock.get("pretrained"))
        self._given = stock
        try:
            super().__init__(**_placed(stock))
        except (ImportError, OSError, ValueError) as error:
            raise UserError(f"pretrained={stock.get('pretrained')} cannot be loaded: {error}") from error
        model: Any = self.model  # type: ignore[attr-defined]
        if arguments.on:
            config = arguments.config(anyres=is_anyres(model.config), ratio_first=self.ratio_first)
            self.dart_handle = dart.prune(model, config)
            self._tally = Tally(model, self.dart_handle)

    def _rename(self, given: dict[str, Any]) -> dict[str, Any]:
        """The research code's names for what the stock model calls otherwise."""
        return given

    def _checked(self, arguments: tuple) -> tuple:
        """A request's arguments, with images and videos looked at."""
        return replaced(arguments, DOC_TO_VISUAL, partial(checked_visuals, handle=self.dart_handle))

    @ends_in_one_line
    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """As the stock model's."""
        looked_at = [dataclasses.replace(each, arguments=self._checked(each.arguments)) for each in requests]
        answers = super().generate_until(looked_at)  # type: ignore[misc]
        if self.dart_handle is not None and self.rank == 0:  # type: ignore[attr-defined]
            print(self._tally.summary(), flush=True)
        return answers

    def clean(self) -> None:
        """Frees the model: DART's handle on it goes first."""
        if self.dart_handle is not None:
            self._tally.remove()
            self.dart_handle.remove()
            del self.dart_handle, self._tally
        super().clean()  # type: ignore[misc]


def replaced(arguments: tuple, place: int, wrap: Callable[[Any], Any]) -> tuple:
    """`arguments` with the one at `place` wrapped."""
    return (*arguments[:place], wrap(arguments[place]), *arguments[place + 1 :])


def cut(text: str, until: str | Iterable[str] | None, ignored: str = "") -> str:
    """`text` up to the first of the stops, of which one may be ignored."""
    for stop in [until] if isinstance(until, str) else until or ():
        if stop and stop != ignored:
            text = text.split(stop)[0]
    return text


def check_checkpoint(path: Any) -> None:
    """Raises UserError for a folder that is not there. A name with one slash may be a hub name."""
    if path is not None and not os.path.isdir(path) and not is_hub_name(path):
        raise UserError(f"pretrained={path} does not exist: expected a checkpoint's folder or a hub name")


def _placed(stock: dict[str, Any]) -> dict[str, Any]:
    """The stock models ask for CUDA; without it, or with a device named, that device holds everything."""
    device = stock.get("device", None if torch.cuda.is_available() else "cpu")
    return stock if device is None else {"device": device, "device_map": device} | stock
