"""Qwen's decoder written out as one loop without a cache, and greedy decoding of the model itself."""

from __future__ import annotations

import torch
from qwen_golden import IMAGE, NO_END, PAD, VIDEO

STEPS = 5


def visual(ids):
    return (ids == IMAGE) | (ids == VIDEO)


def positions_of(model, row):
    """[3, S] of a prompt."""
    if not visual(row["input_ids"]).any():
        return torch.arange(row["input_ids"].shape[1]).expand(3, -1)
    return model.model.get_rope_index(**{k: v for k, v in row.items() if "pixel" not in k})[0][:, 0]


def embeds_of(model, row):
    embeds = model.get_input_embeddings()(row["input_ids"])
    kinds = (
        (IMAGE, "pixel_values", "image_grid_thw", model.model.get_image_features),
        (VIDEO, "pixel_values_videos", "video_grid_thw", model.model.get_video_features),
    )
    for token, pixels, grids, encode in kinds:
        if pixels in row:
            features = torch.cat(list(encode(row[pixels], row[grids], return_dict=True).pooler_output))
            embeds = embeds.masked_scatter((row["input_ids"] == token)[..., None], features)
    return embeds


@torch.no_grad()
def reference(model, row, kept, answer, layer=2, added=()):
    """Logits [n, V] of prompt and answer: from `layer` on only `kept` visual tokens are seen; there is no cache.

    added: per layer from the first on, features [visual, D] added to the visual tokens behind it (DeepStack).
    """
    decoder, length = model.model.language_model, row["input_ids"].shape[1]
    embeds = torch.cat([embeds_of(model, row), decoder.embed_tokens(answer)[None]], 1)
    positions = positions_of(model, row)
    later = int(positions.max()) + 1 + torch.arange(len(answer))
    rope = decoder.rotary_emb(embeds, torch.cat([positions, later.expand(3, -1)], 1)[:, None])
    text = (~visual(row["input_ids"][0])).nonzero().flatten()
    keep = torch.cat([text, kept, length + torch.arange(len(answer))]).sort().values
    hidden, seen = embeds, torch.arange(embeds.shape[1])
    for number, block in enumerate(decoder.layers):
        if number == layer:
            hidden, seen = hidden[:, keep], keep
            rope = tuple(part[..., keep, :] for part in rope)
        blocked = seen[None, :] > seen[:, None]
        mask = torch.zeros(blocked.shape).masked_fill(blocked, torch.finfo(torch.float32).min)[None, None]
        hidden = block(hidden, attention_mask=mask, position_embeddings=rope)
        if number < len(added):
            hidden = hidden.clone()
            hidden[0, visual(row["input_ids"][0]).nonzero().flatten()] += added[number]
    return model.lm_head(decoder.norm(hidden))[0]


@torch.no_grad()
def answer(model, row, **options):
    """(new tokens [B, STEPS], their logits [B, STEPS, V], the cache) of greedy decoding."""
    settings = {"max_new_tokens": STEPS, "do_sample": False, "eos_token_id": NO_END, "pad_token_id": PAD} | options
    out = model.generate(
        **row, **settings, output_logits=True, return_dict_in_generate=True, suppress_tokens=[IMAGE, VIDEO]
    )
    return out.sequences[:, -STEPS:], torch.stack(out.logits, 1), out.past_key_values
