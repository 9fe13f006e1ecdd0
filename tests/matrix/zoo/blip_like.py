"""BLIP-2 and InstructBLIP: a Q-Former's queries fill the placeholders of an OPT decoder; other BLIPs have none."""

from __future__ import annotations

import torch

from . import IMAGE, VOCABULARY, WIDTH, Case, family, skip, square, tiny

QUERIES = 8
QFORMER = {"encoder_hidden_size": WIDTH, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
OPT = {"ffn_dim": 64, "word_embed_proj_dim": WIDTH, "dropout": 0.0}


@family("blip-2", "instructblip")
def blip_2(name, attention):
    """InstructBLIP's Q-Former reads the instruction, too."""
    sizes = {"num_query_tokens": QUERIES, "image_token_index": IMAGE}
    if name == "blip-2":
        sizes["image_text_hidden_size"] = WIDTH
    qformer = QFORMER | ({} if name == "blip-2" else {"vocab_size": VOCABULARY})
    model = tiny(name, attention, qformer_config=qformer, text_config=OPT, **sizes)

    def image(number, generator):
        one = square(QUERIES)(number, generator)
        if name == "instructblip":
            one.tensors["qformer_input_ids"] = torch.randint(3, 99, (1, 4), generator=generator)
        return one

    return Case(model=model, image=image, decoder="language_model.model.decoder")


skip("its text model reads the image by cross attention: there are no placeholder tokens", "blip")
skip("video only: a Q-Former of InstructBLIP's kind that takes no images", "instructblipvideo")
