"""Convert an original LLaVA checkpoint into the format of transformers' LlavaForConditionalGeneration.

`python scripts/convert_llava_to_hf.py --model-path CHECKPOINT --output FOLDER`
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from llava.cli_errors import UserError, exits_cleanly
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.model.builder import load_pretrained_model

PROJECTOR = {"0": "linear_1", "2": "linear_2"}
TEXT_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "rope_parameters",
    "attention_bias",
    "mlp_bias",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def convert_config(config: Any, image_token_id: int) -> LlavaConfig:
    """The config of the converted model. Raises ValueError for what LlavaForConditionalGeneration cannot express."""
    if getattr(config, "mm_projector_type", "linear") != "mlp2x_gelu" or config.image_aspect_ratio == "anyres":
        raise ValueError("only LLaVA-1.5 checkpoints (mlp2x_gelu projector, no anyres) can be converted")
    text = LlamaConfig(**{name: getattr(config, name) for name in TEXT_FIELDS if hasattr(config, name)})
    text.vocab_size = max(text.vocab_size, image_token_id + 1)
    return LlavaConfig(
        vision_config=CLIPVisionConfig(**config.mm_vision_config),
        text_config=text,
        image_token_id=image_token_id,
        projector_hidden_act="gelu",
        vision_feature_layer=config.mm_vision_select_layer,
        vision_feature_select_strategy="default" if config.mm_vision_select_feature == "patch" else "full",
    )


def convert_model(model: Any, image_token_id: int) -> LlavaForConditionalGeneration:
    """A LlavaForConditionalGeneration with the weights of our LlavaLlamaForCausalLM, same dtype.

    image_token_id: id of the placeholder, one per visual token; an id beyond the vocabulary adds (zero) rows.
    """
    converted = LlavaForConditionalGeneration(convert_config(model.config, image_token_id)).to(model.dtype)
    parts = converted.model
    parts.vision_tower.load_state_dict(model.get_vision_tower().tower.state_dict())
    projector = model.model.mm_projector.state_dict()
    renamed = {f"{PROJECTOR[name.split('.')[0]]}.{name.split('.')[1]}": value for name, value in projector.items()}
    parts.multi_modal_projector.load_state_dict(renamed)
    decoder = {
        n: v for n, v in model.model.state_dict().items() if not n.startswith(("vision_tower.", "mm_projector."))
    }
    missing_rows = converted.config.text_config.vocab_size - model.config.vocab_size
    decoder["embed_tokens.weight"] = _more_rows(decoder["embed_tokens.weight"], missing_rows)
    parts.language_model.load_state_dict(decoder)
    converted.lm_head.load_state_dict({"weight": _more_rows(model.lm_head.weight.detach(), missing_rows)})
    return converted.eval()


def _more_rows(weight: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.cat([weight, weight.new_zeros(rows, weight.shape[1])]) if rows > 0 else weight


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model-path", required=True)
    parser.add_argument("--output", required=True)
    parser.add_argument("--torch-dtype", default="float16", choices=("float32", "float16", "bfloat16"))
    args = parser.parse_args(argv)
    tokenizer, model, processor, _ = load_pretrained_model(args.model_path, device="cpu", torch_dtype=args.torch_dtype)
    if tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN) in (None, tokenizer.unk_token_id):
        tokenizer.add_tokens([DEFAULT_IMAGE_TOKEN], special_tokens=True)
    image_token_id = tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN)
    if image_token_id is None:
        raise UserError(f"the tokenizer of {args.model_path} did not take the token {DEFAULT_IMAGE_TOKEN}")
    convert_model(model, image_token_id).save_pretrained(args.output)
    tokenizer.save_pretrained(args.output)
    processor.save_pretrained(args.output)
    print(f"wrote {args.output}: load it with transformers' LlavaForConditionalGeneration")


if __name__ == "__main__":
    main()
