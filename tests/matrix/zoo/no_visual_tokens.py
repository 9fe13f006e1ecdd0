"""Model types from j to z that have no visual tokens at placeholders in a text decoder."""

from __future__ import annotations

from . import skip

skip(
    "cross-attention: the image is seen through cross_attention_states; no token of the decoder is visual",
    "mllama",
)
skip(
    "encoder-decoder: the image is encoder_hidden_states of a text decoder with cross-attention",
    "pix2struct",
    "pp_formulanet",
    "vision-encoder-decoder",
)
skip(
    "encoder-decoder: text and image are tokens of the encoder; the decoder sees them through cross-attention",
    "t5gemma2",
    "udop",
)
skip(
    "no placeholder ids: image_embeds_position_mask says where images are; generate() is the text model's",
    "kosmos-2",
    "kosmos-2.5",
)
skip("takes no image: Mistral4ForCausalLM is a text model (Mistral Small 4 is of type mistral3)", "mistral4")
skip("no text: it predicts a robot's actions from the keys and values that a PaliGemma caches", "pi0")
