"""BLIP-2 and InstructBLIP: a Q-Former's queries fill the placeholders of an OPT decoder; other BLIPs have none."""

from __future__ import annotations

from . import IMAGE, WIDTH, Case, family, skip, square, tiny

QUERIES, FRAMES = 8, 2
QFORMER = {"encoder_hidden_size": WIDTH, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
OPT = {"ffn_dim": 64, "word_embed_proj_dim": WIDTH, "dropout": 0.0}


@family("blip-2")
def blip_2(name, attention):
    sizes = {"num_query_tokens": QUERIES, "image_token_index": IMAGE, "image_text_hidden_size": WIDTH}
    model = tiny(name, attention, qformer_config=QFORMER, text_config=OPT, **sizes)
    return Case(model=model, image=square(QUERIES), decoder="language_model.model.decoder")


skip("the text model attends to the image by cross attention; no placeholder tokens", "blip")
