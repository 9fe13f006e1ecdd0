"""What the stages minimise: the tower's error on patch codes, and the cross entropy of answers."""

from __future__ import annotations

import torch
from torch.nn.functional import cross_entropy

from dev.tiny.batches import IGNORE, Texts
from dev.tiny.codes import FACTORS, OFFSETS, basis
from dev.tiny.model import WIDTH

# Rare facts weigh more, or the tower leaves them out: one patch in an object is its centre, few patches show digits.
CENTER_WEIGHT, DIGIT_WEIGHT, OWNED_WEIGHT = 8.0, 6.0, 3.0
SPILL_WEIGHT = 0.1  # on everything outside the code's directions
GUIDANCE_WEIGHT, MASS_EPS = 0.2, 1e-4
CHOICE_SCALE = 6.0  # turns coordinates (0 or 1) into logits; classes learn far faster than by squared error alone


def dense_loss(features: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, dict[str, float]]:
    """Projected patches [B, N, WIDTH] against codes [B, N, COORDINATES or FACTS].

    Weighted squared error in the basis plus, for every factor, the cross entropy of its classes over the patches
    that have it. Returns the loss and the accuracy of each factor.
    """
    known = target.shape[-1]
    weight = torch.ones(known, device=target.device)
    weight[OFFSETS["center"]] = CENTER_WEIGHT
    weight[OFFSETS["digit"] : OFFSETS["center"]] = DIGIT_WEIGHT
    got = features.float() @ basis(WIDTH).to(target.device).T
    owned = (target[..., : FACTORS["color"]].sum(-1, keepdim=True) > 0).float()
    error = (got[..., :known] - target) ** 2 * weight * (1 + OWNED_WEIGHT * owned)
    loss = error.sum(-1).mean() + SPILL_WEIGHT * (got[..., known:] ** 2).sum(-1).mean()
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


def guidance_loss(
    looks: torch.Tensor, wanted: torch.Tensor, texts: Texts, owners: torch.Tensor, prefix: int
) -> torch.Tensor:
    """How little the guided heads look at what a question is about while the model answers.

    looks: attention [B, heads, Q, T, P]; wanted: bool [B * Q, T], the positions that predict an answer's words;
    owners: int64 [B, P], the thing of each token before the questions (-1: none). A question about nothing in the
    image is to look at the first `prefix` tokens. Finding this out from answers alone takes the model hundreds of
    thousands of images.
    """
    size, _, count, _, picture = looks.shape
    places = torch.zeros(size, count, picture, dtype=torch.bool, device=looks.device)
    for row, question in enumerate(texts.questions):
        at, about = divmod(row, count), question.about
        if about:
            places[at] = torch.isin(owners[at[0]], torch.tensor(about, device=owners.device))
        elif about is not None:
            places[at][:prefix] = True
    mass = (looks.float() * places[:, None, :, None]).sum(-1).transpose(1, 2).flatten(0, 1)  # [B * Q, heads, T]
    guided = wanted & places.flatten(0, 1).any(-1)[:, None]
    return -(mass.transpose(1, 2)[guided] + MASS_EPS).log().mean()


def answer_loss(
    llm, visual: torch.Tensor, texts: Texts, owners: torch.Tensor | None = None
) -> tuple[torch.Tensor, dict[str, float], list[bool]]:
    """`turns_loss` after LLaVA's prompt: the prefix, then visual tokens [B, N, D]; owners: int64 [B, N]."""
    prefix = llm.model.embed_tokens(texts.prefix)[None].expand(len(visual), -1, -1)
    head = torch.cat([prefix, visual.to(prefix.dtype)], 1)
    positions = torch.arange(head.shape[1], device=head.device)[None]
    if owners is not None:
        owners = torch.nn.functional.pad(owners, (prefix.shape[1], 0), value=-1)
    return turns_loss(llm, head, positions, head.shape[1], texts, owners)


def turns_loss(
    llm, head: torch.Tensor, positions: torch.Tensor, begin: int, texts: Texts, owners: torch.Tensor | None = None
) -> tuple[torch.Tensor, dict[str, float], list[bool]]:
    """Mean cross entropy of the answers, figures to log, and which answers are right.

    head: float [B, P, D], what precedes the questions, at `positions` [..., P]. Every question sees it and itself, and
    its positions count from `begin`, as they would alone. `owners` [B, P] adds the guidance loss.
    """
    size, picture = head.shape[:2]
    asked = texts.ids.view(size, -1)
    inputs = torch.cat([head, llm.model.embed_tokens(asked).to(head.dtype)], 1)
    turn = texts.ids.shape[1]
    behind = begin + torch.arange(turn, device=asked.device).repeat(asked.shape[1] // turn)
    positions = torch.cat([positions, behind.expand(*positions.shape[:-1], -1)], -1)
    looks: list[torch.Tensor] = []
    hidden = llm.model(
        inputs_embeds=inputs, position_ids=positions, use_cache=False, picture=picture, turn=turn, looks=looks
    ).last_hidden_state
    hidden = hidden[:, picture:].reshape(*texts.ids.shape, -1)[:, :-1]
    labels = texts.labels[:, 1:]
    wanted = labels != IGNORE
    logits = llm.lm_head(hidden[wanted]).float()
    target = labels[wanted]
    wrong = torch.zeros_like(labels, dtype=torch.bool)
    wrong[wanted] = logits.argmax(-1) != target
    loss = cross_entropy(logits, target)
    right = (~wrong.any(1)).tolist()
    figures = {"answers": round(loss.item(), 4), "right": round(sum(right) / len(right), 3)}
    if owners is not None:
        words = torch.nn.functional.pad(wanted & (labels != texts.end), (0, 1))
        guidance = guidance_loss(looks[0], words, texts, owners, len(texts.prefix))
        loss, figures["guidance"] = loss + GUIDANCE_WEIGHT * guidance, round(guidance.item(), 3)
    return loss, figures, right
