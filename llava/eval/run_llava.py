"""Ask about one picture or several: `python -m llava.eval.run_llava --image-file X --query Q [--sparse]`."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch

from llava.cli_errors import exits_cleanly
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import get_template
from llava.dart_args import dart_config_from_args
from llava.eval.loop import add_model_arguments, check_first_span, generate, load
from llava.mm_utils import load_image, process_images, tokenizer_image_token

EMBEDDED = Path(__file__).resolve().parents[2] / "playground" / "models" / "llava-tiny"


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_arguments(parser, default_path=str(EMBEDDED))
    parser.add_argument("--image-file", required=True, help="one picture, or several joined by --sep")
    parser.add_argument("--sep", default=",")
    parser.add_argument("--query", required=True)
    args = parser.parse_args(argv)
    mapping = dart_config_from_args(args)
    images = [load_image(source) for source in args.image_file.split(args.sep)]
    if args.model_path == str(EMBEDDED):
        print(f"model: the embedded one, {EMBEDDED.name}; --model-path names another", file=sys.stderr)
    loaded = load(args)
    loaded.model.config.DART_config = mapping
    conversation = get_template(args.conv_mode)
    places = (DEFAULT_IMAGE_TOKEN + "\n") * len(images)
    conversation.append_message(conversation.roles[0], places + args.query)
    conversation.append_message(conversation.roles[1], None)
    ids = tokenizer_image_token(conversation.get_prompt(), loaded.tokenizer, return_tensors="pt")[None]
    pixels = process_images(images, loaded.image_processor, loaded.model.config)
    batch = (ids, torch.ones_like(ids), pixels)
    if mapping is not None:
        check_first_span(loaded, batch, args)
    print(generate(loaded, batch, args)[0])
    handle = loaded.model.dart_handle
    if handle is not None and handle.last is not None:
        print(f"vision tokens: {handle.last.visual_before[0]} -> {handle.last.visual_after[0]}", file=sys.stderr)


if __name__ == "__main__":
    main()
