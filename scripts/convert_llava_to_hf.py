"""Convert an original LLaVA checkpoint into the format of transformers' LlavaForConditionalGeneration / LlavaNextFor...

`python scripts/convert_llava_to_hf.py --model-path CHECKPOINT --output FOLDER`
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    MistralConfig,
    Qwen2Config,
)
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from dart.utils import DTYPES, Parser, UserError, add_revision, checkpoint_folder, exits_cleanly
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import get_template
from llava.model.anyres import is_anyres, parse_pinpoints
from llava.model.builder import load_pretrained_model

PROJECTOR = {"0": "linear_1", "2": "linear_2"}
TEXT_CONFIGS: dict[str, Any] = {"llava_llama": LlamaConfig, "llava_mistral": MistralConfig, "llava_qwen": Qwen2Config}
# By this name servers such as vLLM find the language model.
DECODERS = {
    "llava_llama": "LlamaForCausalLM",
    "llava_mistral": "MistralForCausalLM",
    "llava_qwen": "Qwen2ForCausalLM",
}
CHAT = (
    "{%% for message in messages %%}{%% if loop.first %%}%s {%% endif %%}"
    "{%% if message['role'] == 'user' %%}USER: "
    "{%% for part in message['content'] if part['type'] == 'image' %%}<image>\n{%% endfor %%}"
    "{%% for part in message['content'] if part['type'] == 'text' %%}{{ part['text'] }}{%% endfor %%} "
    "{%% else %%}ASSISTANT: {{ message['content'][0]['text'] }}</s>{%% endif %%}{%% endfor %%}"
    "{%% if add_generation_prompt %%}ASSISTANT:{%% endif %%}"
)


def convert_config(config: Any, image_token_id: int) -> LlavaConfig | LlavaNextConfig:
    """The config of the converted model. Raises ValueError for what transformers' classes cannot express."""
    if getattr(config, "mm_projector_type", "linear") != "mlp2x_gelu":
        raise ValueError("only checkpoints with mm_projector_type mlp2x_gelu can be converted")
    if is_anyres(config) and getattr(config, "mm_patch_merge_type", "flat") != "spatial_unpad":
        raise ValueError("only anyres checkpoints with mm_patch_merge_type spatial_unpad can be converted")
    text_class = TEXT_CONFIGS[config.model_type]
    own = ("model_type", "architectures")
    fields = [name for name in text_class().to_dict() if name not in own and hasattr(config, name)]
    text = text_class(**{name: getattr(config, name) for name in fields}, architectures=[DECODERS[config.model_type]])
    text.vocab_size = max(text.vocab_size, image_token_id + 1)
    common = {
        "vision_config": CLIPVisionConfig(**config.mm_vision_config),
        "text_config": text,
        "image_token_id": image_token_id,
        "projector_hidden_act": "gelu",
        "vision_feature_layer": config.mm_vision_select_layer,
        "vision_feature_select_strategy": "default" if config.mm_vision_select_feature == "patch" else "full",
    }
    if not is_anyres(config):
        return LlavaConfig(**common)
    # transformers has (height, width), LLaVA (width, height).
    pinpoints = [[height, width] for width, height in parse_pinpoints(config.image_grid_pinpoints)]
    return LlavaNextConfig(image_grid_pinpoints=pinpoints, **common)


def chat_template(tokenizer: Any, model_type: str) -> str | None:
    """The tokenizer's own; else, for LLaVA on Llama, that of `vicuna_v1`."""
    if tokenizer.chat_template is not None or model_type != "llava_llama":
        return tokenizer.chat_template
    return CHAT % get_template("vicuna_v1").system


def convert_processor(
    tokenizer: Any, processor: Any, config: LlavaConfig | LlavaNextConfig, original: Any
) -> LlavaProcessor | LlavaNextProcessor:
    """Text and images together; `tokenizer` knows the placeholder already. original: the unconverted config."""
    settings = {name: getattr(processor, name) for name in ("size", "crop_size", "image_mean", "image_std")}
    kind: Any
    if is_anyres(original):
        kind = LlavaNextProcessor
        images: Any = LlavaNextImageProcessorPil(image_grid_pinpoints=config.image_grid_pinpoints, **settings)
    else:
        kind = LlavaProcessor
        padded = getattr(original, "image_aspect_ratio", None) == "pad"
        images = LlavaImageProcessorPil(do_pad=padded, **settings)
    return kind(
        images,
        tokenizer,
        patch_size=config.vision_config.patch_size,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
        chat_template=chat_template(tokenizer, original.model_type),
        image_token=DEFAULT_IMAGE_TOKEN,
        num_additional_image_tokens=1,  # CLIP's class token
    )


def convert_model(model: Any, image_token_id: int) -> LlavaForConditionalGeneration | LlavaNextForConditionalGeneration:
    """A model of transformers with the weights of one of our LLaVA classes, same dtype.

    image_token_id: id of the placeholder, one per visual token; an id beyond the vocabulary adds (zero) rows.
    """
    family: Any = LlavaNextForConditionalGeneration if is_anyres(model.config) else LlavaForConditionalGeneration
    converted = family(convert_config(model.config, image_token_id)).to(model.dtype)
    parts = converted.model
    parts.vision_tower.load_state_dict(model.get_vision_tower().tower.state_dict())
    projector = model.model.mm_projector.state_dict()
    renamed = {f"{PROJECTOR[name.split('.')[0]]}.{name.split('.')[1]}": value for name, value in projector.items()}
    parts.multi_modal_projector.load_state_dict(renamed)
    vision = ("vision_tower.", "mm_projector.", "image_newline")
    decoder = {n: v for n, v in model.model.state_dict().items() if not n.startswith(vision)}
    if is_anyres(model.config):
        parts.image_newline.data.copy_(model.model.image_newline.data)
    missing_rows = converted.config.text_config.vocab_size - model.config.vocab_size
    decoder["embed_tokens.weight"] = _more_rows(decoder["embed_tokens.weight"], missing_rows)
    parts.language_model.load_state_dict(decoder)
    converted.lm_head.load_state_dict({"weight": _more_rows(model.lm_head.weight.detach(), missing_rows)})
    return converted.eval()


def published_names(model: Any) -> dict[str, torch.Tensor]:
    """The weights under the names that published checkpoints have, and that vLLM reads; newer transformers' own towers
    have one step less."""
    own, published = "vision_tower.", "vision_tower.vision_model."
    return {
        name if published in name else name.replace(own, published): weight
        for name, weight in model.state_dict().items()
    }


def _more_rows(weight: torch.Tensor, rows: int) -> torch.Tensor:
    return torch.cat([weight, weight.new_zeros(rows, weight.shape[1])]) if rows > 0 else weight


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--model-path", required=True, help="folder or hub name of an original LLaVA checkpoint")
    add_revision(parser)
    parser.add_argument("--output", required=True, help="folder to write")
    parser.add_argument("--torch-dtype", default="float16", choices=DTYPES, help="of the weights (float16)")
    args = parser.parse_args(argv)
    folder = checkpoint_folder(args.model_path, args.revision)
    tokenizer, model, processor, _ = load_pretrained_model(folder, device="cpu", torch_dtype=args.torch_dtype)
    if tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN) in (None, tokenizer.unk_token_id):
        tokenizer.add_tokens([DEFAULT_IMAGE_TOKEN], special_tokens=True)
    image_token_id = tokenizer.convert_tokens_to_ids(DEFAULT_IMAGE_TOKEN)
    if image_token_id is None:
        raise UserError(f"the tokenizer of {args.model_path} did not take the token {DEFAULT_IMAGE_TOKEN}")
    tokenizer.padding_side = "left"  # prompts of a batch end together: their answers begin there
    converted = convert_model(model, image_token_id)
    converted.save_pretrained(args.output, state_dict=published_names(converted))
    convert_processor(tokenizer, processor, converted.config, model.config).save_pretrained(args.output)
    print(f"wrote {args.output}: load it with transformers' {type(converted).__name__}")


if __name__ == "__main__":
    main()
