"""What the stages minimise: the tower's error on patch codes, and the cross entropy of answers."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from scripts.tiny.batches import IGNORE, Texts
from scripts.tiny.codes import COORDINATES, FACTORS, OFFSETS, basis
from scripts.tiny.model import WIDTH

# Rare facts weigh more, or the tower leaves them out: one patch in an object is its centre, few patches show digits.
CENTER_WEIGHT, DIGIT_WEIGHT, OWNED_WEIGHT = 8.0, 6.0, 3.0
SPILL_WEIGHT = 0.1  # on everything outside the code's directions
CHOICE_SCALE = 6.0  # turns coordinates (0 or 1) into logits; classes learn far faster than by squared error alone


def dense_loss(features: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """Projected patches [B, N, WIDTH] against codes [B, N, COORDINATES].

    Weighted squared error in the basis plus, for every factor, the cross entropy of its classes over the patches
    that have it. Returns the loss and the accuracy of each factor.
    """
    weight = torch.ones(COORDINATES, device=target.device)
    weight[OFFSETS["center"]] = CENTER_WEIGHT
    weight[OFFSETS["digit"] : OFFSETS["center"]] = DIGIT_WEIGHT
    got = features.float() @ basis(WIDTH).to(target.device).T
    owned = (target[..., : FACTORS["color"]].sum(-1, keepdim=True) > 0).float()
    error = (got[..., :COORDINATES] - target) ** 2 * weight * (1 + OWNED_WEIGHT * owned)
    loss = error.sum(-1).mean() + SPILL_WEIGHT * (got[..., COORDINATES:] ** 2).sum(-1).mean()
    right = {}
    for name, size in FACTORS.items():
        span = slice(OFFSETS[name], OFFSETS[name] + size)
        has = target[..., span].sum(-1) > 0
        if not has.any():
            continue
        logits, truth = got[..., span][has] * CHOICE_SCALE, target[..., span][has].argmax(-1)
        loss = loss + cross_entropy(logits, truth)
        right[name] = round((logits.argmax(-1) == truth).float().mean().item(), 3)
    return loss, right


def answer_loss(llm, visual: torch.Tensor, texts: Texts) -> tuple[torch.Tensor, float]:
    """(mean cross entropy of the answers, share of answers that are right in every token) for visual tokens [B, N, D].

    Every question sees the prefix, its picture and itself, at the positions it would have alone.
    """
    size, count = visual.shape[:2]
    embed = llm.model.embed_tokens
    prefix = embed(texts.prefix)[None].expand(size, -1, -1)
    turn = texts.ids.shape[1]
    asked = texts.ids.view(size, -1)
    inputs = torch.cat([prefix, visual.to(prefix.dtype), embed(asked)], 1)
    picture = prefix.shape[1] + count
    behind = picture + torch.arange(turn, device=asked.device).repeat(asked.shape[1] // turn)
    positions = torch.cat([torch.arange(picture, device=asked.device), behind])[None]
    hidden = llm.model(
        inputs_embeds=inputs, position_ids=positions, use_cache=False, picture=picture, turn=turn
    ).last_hidden_state
    hidden = hidden[:, picture:].reshape(*texts.ids.shape, -1)[:, :-1]
    labels = texts.labels[:, 1:]
    wanted = labels != IGNORE
    logits = llm.lm_head(hidden[wanted]).float()
    target = labels[wanted]
    wrong = torch.zeros_like(labels, dtype=torch.bool)
    wrong[wanted] = logits.argmax(-1) != target
    return cross_entropy(logits, target), 1 - wrong.any(1).float().mean().item()
