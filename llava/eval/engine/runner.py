"""Runs of the evaluation loop on one checkpoint, which is loaded once."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from dart import PruneReport
from dart.utils import Parser, checkpoint_folder
from llava.eval.engine.examples import Example
from llava.eval.engine.loop import add_loop_arguments, check_values, run
from llava.eval.engine.model import Loaded, load
from llava.eval.tasks.base import Task
from llava.files import fingerprint


class Runner:
    """checkpoint: a folder or hub name; folder: holds a folder of answers files for each checkpoint; loop_flags: those
    of every run. digest: what tells checkpoints apart.

    Raises UserError or ValueError for flags that no run can have.
    """

    def __init__(self, checkpoint: str, folder: Path, loop_flags: Sequence[str]):
        self.checkpoint, self.loop_flags = checkpoint, list(loop_flags)
        self.parser = Parser(prog="suite: flags of the loop")
        add_loop_arguments(self.parser, files=False)
        given = self._arguments(folder, [])
        check_values(given)
        self.parser.set_defaults(max_new_tokens=None, conv_mode=None)  # the task decides, where no flag does
        self.digest = str(fingerprint(checkpoint_folder(checkpoint, given.revision)))
        self.folder = folder / self.digest[:12]

    def _arguments(self, answers: Path, flags: Sequence[str]) -> argparse.Namespace:
        given = ["--model-path", self.checkpoint, "--answers-file", str(answers), *self.loop_flags, *flags]
        return self.parser.parse_args(given)

    @cached_property
    def loaded(self) -> Loaded:
        return load(self._arguments(self.folder, []))

    def answer(
        self,
        task: Task,
        data: Path,
        examples: Sequence[Example],
        answers: Path,
        flags: Sequence[str],
        split: str | None = None,
    ) -> PruneReport | None:
        """Answer what is not answered yet; the report of the last pruned prefill. Raises UserError for bad input.

        split: of the task, which `examples` are of; by default the first that is installed.
        """
        args = self._arguments(answers, flags)
        task.complete(args, data, task.split(data, split))
        return run(args, self.loaded, examples).report
