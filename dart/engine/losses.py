"""The loss of a pruned forward: the model's own, over the tokens that are left."""

from __future__ import annotations

from typing import Any

import torch

from dart.engine.forward import CURRENT, FINISHED, Forward

IGNORED = -100  # a label without a loss, of transformers and torch


def labels_of_rows(labels: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """LongTensor [B, n]: `labels` [B, S] of the kept `rows` [B, n]; `IGNORED` where a row holds no token, and for the
    first token after that: the slot before it holds nothing that could foretell it."""
    rows = rows.to(labels.device)
    empty = rows < 0
    empty[:, 1:] |= empty[:, :-1].clone()
    return labels.gather(1, rows.clamp_min(0)).masked_fill(empty, IGNORED)


def kept_labels(labels: torch.Tensor, length: int) -> torch.Tensor:
    """For a model that computes its loss itself: `labels` [B, S] of what this thread's last forward left.

    length: of the logits. Labels of that length already, or of another forward, come back as they are.
    """
    forward = CURRENT.get() or FINISHED.get()
    kept = forward.kept[-1].rows if forward is not None and forward.kept else None
    if kept is not None and labels.shape[1] != length and kept.shape == (len(labels), length):
        labels = labels_of_rows(labels, kept)
    if forward is not None:
        forward.learned = labels
    return labels


def last_labels(labels: torch.Tensor) -> torch.Tensor:
    """LongTensor [B, S']: one for each of the logits of the last forward of a pruned model in this thread.

    labels: [B, S] as they were given to it, which come back where it dropped and merged nothing.
    """
    forward = FINISHED.get()
    return labels if forward is None or forward.learned is None else forward.learned


def loss_of_kept(model: Any, output: Any, labels: torch.Tensor, forward: Forward, arguments: dict[str, Any]) -> Any:
    """`output` with the loss of `labels` [B, S], which were taken out of the arguments before the forward.

    A token's label is the next one that is left, as in the model's own loss. What a mixture of experts adds to its loss
    is added here, too.
    """
    logits = output.logits if hasattr(output, "logits") else output[0]
    if forward.kept:
        labels = labels_of_rows(labels, forward.kept[-1].rows)
    if logits.shape[1] != labels.shape[1]:
        labels = labels[:, -logits.shape[1] :]
    forward.learned = labels
    text = model.config.get_text_config(decoder=True)
    extra = {name: arguments[name] for name in ("num_items_in_batch",) if arguments.get(name) is not None}
    loss = model.loss_function(logits=logits, labels=labels, vocab_size=text.vocab_size, **extra)
    auxiliary = getattr(output, "aux_loss", None)
    if isinstance(auxiliary, torch.Tensor):
        factor = getattr(model, "router_aux_loss_coef", getattr(text, "router_aux_loss_coef", 0.0))
        loss = loss + factor * auxiliary.to(loss.device)
    if isinstance(output, tuple):
        return (loss, *output)
    output["loss"] = loss
    return output
