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
GUIDANCE_WEIGHT, MASS_EPS = 0.2, 1e-4
END = 2  # the tokenizer's EOS
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


def guidance_loss(looks: torch.Tensor, wanted: torch.Tensor, texts: Texts, owners: torch.Tensor) -> torch.Tensor:
    """How little the guided heads look at what a question is about while the model answers.

    looks: attention [B, heads, Q, T, picture]; wanted: bool [B * Q, T], the positions that predict an answer's words;
    owners: int64 [B, N], the thing of each visual token. A question about nothing in the picture is to look at the
    prefix. Finding this out from answers alone takes the model hundreds of thousands of pictures.
    """
    size, _, count, _, picture = looks.shape
    prefix = picture - owners.shape[1]
    places = torch.zeros(size, count, picture, dtype=torch.bool, device=looks.device)
    for row, question in enumerate(texts.questions):
        at, about = divmod(row, count), question.about
        if about:
            places[at][prefix:] = torch.isin(owners[at[0]], torch.tensor(about, device=owners.device))
        elif about is not None:
            places[at][:prefix] = True
    mass = (looks.float() * places[:, None, :, None]).sum(-1).transpose(1, 2).flatten(0, 1)  # [B * Q, heads, T]
    guided = wanted & places.flatten(0, 1).any(-1)[:, None]
    return -(mass.transpose(1, 2)[guided] + MASS_EPS).log().mean()


def answer_loss(
    llm, visual: torch.Tensor, texts: Texts, owners: torch.Tensor | None = None
) -> tuple[torch.Tensor, dict[str, float], list[bool]]:
    """Mean cross entropy of the answers for visual tokens [B, N, D], figures to log, and which answers are right.

    Every question sees the prefix, its picture and itself, at the positions it would have alone. `owners` [B, N] adds
    the guidance loss.
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
        words = torch.nn.functional.pad(wanted & (labels != END), (0, 1))
        guidance = guidance_loss(looks[0], words, texts, owners)
        loss, figures["guidance"] = loss + GUIDANCE_WEIGHT * guidance, round(guidance.item(), 3)
    return loss, figures, right
