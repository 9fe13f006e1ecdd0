"""BLIP-2 and InstructBLIP: a Q-Former's queries fill the placeholders of an OPT decoder; other BLIPs have none."""

from __future__ import annotations

import torch

from . import IMAGE, SIZE, TEXT_END, VIDEO, VOCABULARY, WIDTH, Case, family, skip, square, tiny

QUERIES, FRAMES = 8, 2
QFORMER = {"encoder_hidden_size": WIDTH, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
OPT = {"ffn_dim": 64, "word_embed_proj_dim": WIDTH, "dropout": 0.0}


def clip_or_image(name):
    frames = FRAMES if name == "instructblipvideo" else 1
    token = VIDEO if name == "instructblipvideo" else IMAGE

    def image(number, generator):
        one = square(QUERIES * frames, token=token)(number, generator)
        if frames > 1:
            one.tensors["pixel_values"] = torch.randn(1, frames, 3, SIZE, SIZE, generator=generator)
        if name != "blip-2":
            one.tensors["qformer_input_ids"] = torch.randint(3, TEXT_END, (1, 4), generator=generator)
        return one

    return image


@family("blip-2", "instructblip", "instructblipvideo")
def blip_2(name, attention):
    """InstructBLIP's Q-Former reads the instruction, too; the video model takes clips alone."""
    sizes = {"num_query_tokens": QUERIES, "image_token_index": IMAGE, "image_text_hidden_size": WIDTH}
    qformer = QFORMER | {"vocab_size": VOCABULARY}
    if name == "instructblipvideo":
        sizes = {"num_query_tokens": QUERIES, "video_token_index": VIDEO}
    model = tiny(name, attention, qformer_config=qformer, text_config=OPT, **sizes)
    note = "generate() fills the placeholders itself and calls language_model.generate(inputs_embeds=...)"
    return Case(model=model, image=clip_or_image(name), decoder="language_model.model.decoder", note=note)


skip("its text model reads the image by cross-attention: there are no placeholder tokens", "blip")
