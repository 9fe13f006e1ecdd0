"""Models that turn an image into ids of their own vocabulary and read these in the place of the placeholders."""

from __future__ import annotations

import torch

from . import IMAGE, SIZE, Case, family, square, tiny

CODES = 16
FIRST_CODE = 101  # id of the first image code in the vocabulary
VQ = {"embed_dim": 32, "latent_channels": 32, "base_channels": 32, "channel_multiplier": [1, 1, 1], "num_res_blocks": 1}
EDGE = SIZE // 4  # codes along an edge after two halvings


@family("chameleon")
def chameleon(name, attention):
    # Its words for codes write digits as letters: A for 0, BA for 10.
    letters = str.maketrans("0123456789", "ABCDEFGHIJ")
    ids = {f"IMGIMG{str(n).translate(letters)}Z": FIRST_CODE + n for n in range(CODES)}
    vq = VQ | {"num_embeddings": CODES, "resolution": SIZE, "attn_type": "none"}
    model = tiny(name, attention, vq_config=vq, vocabulary_map=ids | {"<image>": IMAGE})
    note = "the decoder's forward embeds the image itself: it gets pixel_values, not inputs_embeds"
    return Case(model=model, image=square(EDGE**2), decoder="model", note=note)


@family("emu3")
def emu3(name, attention):
    """Each row of codes ends with an end-of-line id, a placeholder, too."""

    def image(number, generator):
        one = square(EDGE * (EDGE + 1))(number, generator)
        one.tensors["image_sizes"] = torch.tensor([[SIZE, SIZE]])
        return one

    ids = {f"<|visual token {n:06d}|>": FIRST_CODE + n for n in range(CODES)}
    ids |= {"<image>": IMAGE, "<|extra_200|>": 118}
    vq = VQ | {"codebook_size": CODES, "attn_resolutions": [], "temporal_downsample_factor": 1}
    model = tiny(name, attention, vq_config=vq, vocabulary_map=ids)
    return Case(model=model, image=image, decoder="model.text_model")


@family("apertus1p5")
def apertus(name, attention):
    """The codes follow the text ids in one vocabulary."""

    def image(number, generator):
        one = square(EDGE**2)(number, generator)
        one.tensors["image_sizes"] = torch.tensor([[SIZE, SIZE]])
        return one

    vision = VQ | {"codebook_size": CODES, "attn_resolutions": [], "resolution": SIZE}
    audio = {"num_filters": 4, "codebook_size": 4, "codebook_dim": 8, "hidden_size": 8, "num_lstm_layers": 1}
    audio |= {"decoder_hidden_size": 32, "decoder_intermediate_size": 32, "decoder_num_layers": 1}
    model = tiny(
        name,
        {"text_config": attention},
        vision_config=vision,
        audio_config=audio,
        image_token_offset=FIRST_CODE,
        audio_token_offset=FIRST_CODE + CODES,
    )
    return Case(model=model, image=image)
