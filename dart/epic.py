"""EPIC: a model learns from itself under a lower compression (arXiv 2510.00515).

Student and teacher have the same weights; the teacher keeps more tokens and gets no gradient. TCD raises the
compression from step to step, LCD moves the layer at which tokens go from deep to shallow, ICD does both.

    class Mine(EpicTrainer, Trainer): ...
    Mine(model, arguments, train_dataset=data, epic="tcd", config=dart.DartConfig()).train()
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from dart.config import DartConfig
from dart.engine.losses import IGNORED, last_labels
from dart.engine.selection import selector
from dart.training import DartCallback, DartTrainer, uniform
from dart.utils import needed, replacing

PLOT = "epic.png"
PANELS = (
    ("fraction of visual tokens dropped", ("ratio_student", "ratio_teacher", "ratio_gap")),
    ("layer", ("pruned_layer",)),
    ("loss", ("loss_sft", "loss_distill")),
)
INCHES, DOTS_PER_INCH = (15.0, 4.4), 110


@dataclass(frozen=True)
class Ramp:
    """A line over the training's progress p in [0, 1]: from `start` at 0 to `end` at 1, nowhere above `cap`.

    All three are fractions of the visual tokens.
    """

    start: float
    end: float
    cap: float = 1.0

    def __call__(self, progress: float) -> float:
        return min(self.start + (self.end - self.start) * progress, self.cap)


@dataclass(frozen=True)
class Epic:
    """A schedule of compression, and the loss (1 - lambda) * loss of the answers + lambda * distillation.

    least, most: between which the student's ratio of dropped tokens is drawn, evenly, once a step; gap: what the
    teacher's is lower by. last_layer: where the layer arrives, from the number of layers downwards (LCD); None: it
    stays the config's (TCD). restarts: the ramps begin anew with every layer (ICD). weight: lambda. temperature: tau of
    both distributions; the distillation loss is multiplied by its square, so that its gradient does not shrink with it.
    Raises ValueError for a weight outside [0, 1] and a temperature that is not above 0. See `PRESETS` for the source.
    """

    least: Ramp
    most: Ramp
    gap: Ramp
    last_layer: int | None = None
    restarts: bool = False
    weight: float = 0.7
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise ValueError(f"weight must be between 0 and 1, got {self.weight}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")

    def layer(self, progress: float, layers: int) -> int | None:
        """L - p (L - last), rounded half up, of a decoder of L `layers`; L drops nothing. None: the config's.

        progress: p in [0, 1], as everywhere here.
        """
        if self.last_layer is None:
            return None
        return math.floor(layers - progress * (layers - self.last_layer) + 0.5)

    def stage_progress(self, progress: float, layers: int) -> float:
        """How far the ramps are: with `restarts`, the part of the steps at this layer that is over."""
        layer = self.layer(progress, layers)
        if not self.restarts or layer is None or layers == self.last_layer:
            return progress
        way = layers - int(self.last_layer or 0)
        begin, end = (max(layers - layer - 0.5, 0) / way, min((layers - layer + 0.5) / way, 1.0))
        return min(max((progress - begin) / (end - begin), 0.0), 1.0)

    def ratios(self, progress: float, layers: int, draw: float) -> tuple[float, float]:
        """(the student's ratio of dropped tokens, the teacher's), both in [0, 1].

        layers: of the decoder; draw: in [0, 1), says where in the student's range.
        """
        progress = self.stage_progress(progress, layers)
        least, most = self.least(progress), self.most(progress)
        student = least + (most - least) * draw
        return student, max(student - self.gap(progress), 0.0)


# As published where no word is added: digests of the paper give these figures, but neither tau nor where the layer
# arrives (the layer of TCD is taken). "coded": as the released code computes; it has TCD alone.
_GAP = Ramp(0.05, 0.3)
PRESETS = {
    "tcd": Epic(least=Ramp(0.0, 0.5), most=Ramp(0.05, 0.9), gap=_GAP),
    "tcd-coded": Epic(least=Ramp(0.1, 0.26), most=Ramp(0.1, 0.74), gap=Ramp(0.1, 0.6, cap=0.3), weight=0.5),
    "lcd": Epic(least=Ramp(0.2, 0.2), most=Ramp(0.9, 0.9), gap=_GAP, last_layer=2),
    "icd": Epic(least=Ramp(0.0, 0.5), most=Ramp(0.05, 0.9), gap=_GAP, last_layer=2, restarts=True),
}


def answer_logits(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """[N, V] of logits [B, S, V]: those that predict a learned token, row by row, the first one of an answer included.

    labels: LongTensor [B, S] of the same tokens, -100 where nothing is learned; a row's first label is never predicted.
    Whatever other tokens were dropped, the N rows stand for the same learned tokens. Dtype and device are those of the
    logits, and the gradient goes on to them.
    """
    return logits[:, :-1][(labels[:, 1:] != IGNORED).to(logits.device)]


def distillation(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """float32 [N], in nats: tau^2 KL(softmax(teacher / tau) || softmax(student / tau)), computed in float32.

    student, teacher: logits [N, V] of any floating dtype; no gradient goes to the teacher. temperature: tau.
    """
    ours = functional.log_softmax(student.float() / temperature, -1)
    theirs = functional.log_softmax(teacher.detach().float() / temperature, -1)
    return functional.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1) * temperature**2


class EpicCallback(DartCallback):
    """Knows student and teacher of the step that began last.

    config: strategy and its settings, but for the budget. layers: of the decoder. Raises ValueError for a layer that
    the decoder does not have and for a strategy with layers of its own where the schedule moves the layer.

    student, teacher: settings of that step; both attributes are the config itself before the first one.
    """

    def __init__(self, config: DartConfig, epic: Epic, layers: int):
        super().__init__(config)
        self.epic, self.layers = epic, layers
        self.student, self.teacher = config, config
        if epic.last_layer is None and config.layer >= layers:
            raise ValueError(f"layer={config.layer} drops nothing in a decoder of {layers}: choose a smaller one")
        if epic.last_layer is not None:
            if not 0 < epic.last_layer < layers:
                raise ValueError(f"the layer goes down to {epic.last_layer}, which a decoder of {layers} does not have")
            stages = [stage.layer for stage in selector(replace(config, layer=layers - 1), layers)[0].stages]
            if stages != [layers - 1]:
                raise ValueError(
                    f"strategy {config.strategy!r} drops tokens at layers of its own ({stages}): the layer cannot be "
                    "moved, use a schedule that does not (tcd)"
                )

    def on_step_begin(self, args: Any, state: Any, control: Any, model: Any = None, **_: Any) -> None:
        self.student, self.teacher = self.configs(args.seed, state.global_step, state.max_steps)

    def configs(self, seed: int, step: int, steps: int) -> tuple[DartConfig, DartConfig]:
        """(student, teacher) of a step: they differ in the ratio alone, and not in what a strategy draws at random.

        step: from 0, of `steps` in the whole run. All ranks get the same, see `dart.training.uniform`.
        """
        progress = step / steps if steps > 0 else 0.0
        student, teacher = self.epic.ratios(progress, self.layers, uniform(seed, step))
        layer = self.epic.layer(progress, self.layers)
        base = replace(self.config_of(seed, step), keep=None, reduction_ratio=student)
        if layer is not None:
            base = replace(base, layer=min(layer, self.layers - 1))
            if layer == self.layers:  # behind the last layer: nothing is dropped
                student = teacher = 0.0
        return replace(base, reduction_ratio=student), replace(base, reduction_ratio=teacher)

    def figures(self) -> dict[str, float]:
        student, teacher = float(self.student.reduction_ratio or 0), float(self.teacher.reduction_ratio or 0)
        return {
            **super().figures(),
            "ratio_student": student,
            "ratio_teacher": teacher,
            "ratio_gap": student - teacher,
            "pruned_layer": self.student.layer,
        }


class EpicTrainer(DartTrainer):
    """For a class of one's own, before a Trainer's: `class Mine(EpicTrainer, Trainer): ...`.

    epic: a preset's name, or an `Epic`. config: strategy and its settings, None: `DartConfig()`; the schedule sets the
    budget, and the layer where it moves. All other arguments are the Trainer's. A batch needs `labels` [B, S], -100 for
    visual tokens. The teacher runs first, in evaluation mode (no dropout) and without a gradient.

    Entries of the log with a loss also have `ratio_student`, `ratio_teacher`, `ratio_gap` and `pruned_layer` of the
    last step, and `loss_sft`, `loss_distill`, means over the logged steps and all ranks; at the end all are drawn into
    `epic.png` of the output folder. Raises ValueError for an unknown preset, label smoothing and what `EpicCallback`
    refuses; dart.utils.UserError without matplotlib.
    """

    def __init__(self, *args: Any, epic: Epic | str, config: DartConfig | None = None, **kwargs: Any):
        if isinstance(epic, str):
            if epic not in PRESETS:
                raise ValueError(f"epic must be one of {', '.join(PRESETS)}, got {epic!r}")
            epic = PRESETS[epic]
        needed("matplotlib.figure", "plot")  # said now, not after hours
        self.epic = epic
        self._parts: list[torch.Tensor] = []
        self._steps: set[int] = set()
        super().__init__(*args, **kwargs)
        this: Any = self
        if this.args.label_smoothing_factor:
            raise ValueError("label_smoothing_factor must be 0: the loss is taken over the tokens that are left")
        layers = this.model.config.get_text_config(decoder=True).num_hidden_layers
        self.pruning: EpicCallback = EpicCallback(DartConfig() if config is None else config, epic, layers)
        this.add_callback(self.pruning)

    def train(self, *args: Any, **kwargs: Any) -> Any:
        result = super().train(*args, **kwargs)
        this: Any = self
        if this.is_world_process_zero():
            draw(Path(this.args.output_dir) / PLOT, this.state.log_history)
        return result

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        this: Any = self
        if not this.model.training:  # DeepSpeed's engine around it never says that it is not
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)  # type: ignore[misc]
        self.pruning.attach(this.model, self.pruning.teacher)
        model.eval()
        try:
            with torch.no_grad():
                logits = model(**inputs).logits
        finally:
            model.train()
        teacher = answer_logits(logits, last_labels(inputs["labels"]))
        del logits
        # It stays on until the next batch: layers under checkpointing run again in the backward pass.
        self.pruning.attach(this.model, self.pruning.student)
        sft, outputs = super().compute_loss(model, inputs, True, num_items_in_batch)  # type: ignore[misc]
        student = answer_logits(outputs.logits, last_labels(inputs["labels"]))
        if len(student) != len(teacher):
            raise ValueError(
                f"{len(student)} learned tokens are left with the student and {len(teacher)} with the teacher: labels "
                "of visual tokens must be -100"
            )
        kl = distillation(student, teacher, self.epic.temperature)
        distill = kl.sum() / self._divisor(len(kl), num_items_in_batch)
        whole = num_items_in_batch is not None and this.model_accepts_loss_kwargs
        share = 1 if whole else this.args.gradient_accumulation_steps
        self._parts.append(torch.stack([sft.detach().float(), distill.detach()]) / share)
        self._steps.add(this.state.global_step)
        loss = (1 - self.epic.weight) * sft + self.epic.weight * distill.to(sft)
        return (loss, outputs) if return_outputs else loss

    def _divisor(self, tokens: int, items: Any) -> Any:
        """What the model's own loss is divided by: the learned tokens of this batch, or of the whole step."""
        this: Any = self
        if items is None or not this.model_accepts_loss_kwargs:
            return max(tokens, 1)
        return items / this.accelerator.num_processes if this.args.average_tokens_across_devices else items

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        if "loss" in logs and self._parts:
            this: Any = self
            parts = torch.stack(self._parts).sum(0) / len(self._steps)
            sft, distill = this.accelerator.gather(parts[None]).mean(0).tolist()
            logs = {**logs, "loss_sft": sft, "loss_distill": distill}
            self._parts, self._steps = [], set()
        super().log(logs, *args, **kwargs)


def draw(path: Path, history: Sequence[Mapping[str, float]]) -> None:
    """Write a PNG of a Trainer's log (`state.log_history`): ratios and gap, the layer, both losses, over the steps."""
    figure = needed("matplotlib.figure", "plot").Figure(INCHES, DOTS_PER_INCH)
    axes = figure.subplots(1, len(PANELS))
    for axis, (title, names) in zip(axes, PANELS, strict=True):
        for name in names:
            points = [(entry["step"], entry[name]) for entry in history if name in entry]
            axis.plot([step for step, _ in points], [value for _, value in points], label=name, marker=".")
        axis.set(title=title, xlabel="step")
        axis.legend()
    figure.tight_layout()
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
