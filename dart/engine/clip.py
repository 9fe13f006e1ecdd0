"""The signal `clip_similarity`: what a CLIP beside the model says of its visual tokens and the question.

The vision tower of a LLaVA is that of a CLIP, but a LLaVA has neither CLIP's text tower nor its projections.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.nn.functional import normalize
from transformers import AutoTokenizer, CLIPModel

ENDS = 2  # tokens that CLIP puts around a text


def _loaded(kind: Any, place: str, option: str) -> Any:
    """`kind` of transformers from a folder or name. Raises ValueError with the option's name."""
    try:
        return kind.from_pretrained(place)
    except (OSError, ValueError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(f"option {option}: {place!r} cannot be loaded as a {kind.__name__}: {reason}") from None


class Clip:
    """CLIP's text tower and both projections, in float32. folder: of the CLIP; tokenizer: the LLM's, or its folder;
    None: that of `model`'s own checkpoint. Raises ValueError where they cannot be loaded."""

    def __init__(self, folder: str, tokenizer: Any, model: Any):
        clip = _loaded(CLIPModel, folder, "clip").float().eval()
        self.words = _loaded(AutoTokenizer, folder, "clip")
        if tokenizer is None or isinstance(tokenizer, str):
            place = tokenizer or getattr(model, "name_or_path", "")
            if not place:
                raise ValueError("option tokenizer must name the LLM's: this model was not loaded from a checkpoint")
            tokenizer = _loaded(AutoTokenizer, place, "tokenizer")
        self.tokenizer = tokenizer
        self.text, self.text_projection = clip.text_model, clip.text_projection
        self.norm, self.visual_projection = clip.vision_model.post_layernorm, clip.visual_projection
        self.length = clip.config.text_config.max_position_embeddings - ENDS

    @torch.no_grad()
    def __call__(self, features: torch.Tensor, ids: list[int]) -> torch.Tensor:
        """float32 [n]: for features [n, E] of the vision tower and the LLM's ids of the question, the cosine of a token
        and the question, mean over pieces of the question that fit CLIP's text tower; 0 without a question.

        Raises ValueError for features that are not of this CLIP's width.
        """
        if features.shape[-1] != (width := self.norm.normalized_shape[0]):
            raise ValueError(
                f"option clip: this CLIP's vision tower has states of {width} numbers, the model's has "
                f"{features.shape[-1]}: give the CLIP that the model was made with"
            )
        for module in (self.text, self.text_projection, self.norm, self.visual_projection):
            module.to(features.device)
        tokens = normalize(self.visual_projection(self.norm(features.float())), dim=-1)
        words = self.words(self.tokenizer.decode(ids, skip_special_tokens=True), add_special_tokens=False)["input_ids"]
        pieces = [words[start : start + self.length] for start in range(0, len(words), self.length)]
        total = torch.zeros_like(tokens[:, 0])
        for piece in pieces:
            whole = [self.words.bos_token_id, *piece, self.words.eos_token_id]
            text = self.text(input_ids=torch.tensor([whole], device=features.device)).pooler_output
            total += tokens @ normalize(self.text_projection(text)[0], dim=-1)
        return total / max(len(pieces), 1)
