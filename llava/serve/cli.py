"""Talk about a picture: `python -m llava.serve.cli --image-file X [--sparse]`.

/image PATH adds a picture; /exit, Ctrl-C or the end of the input leaves.
"""

from __future__ import annotations

import argparse
import sys

from PIL import Image
from transformers import TextStreamer

from dart.utils import exits_cleanly
from llava.conversation import get_template
from llava.dart_args import dart_config_from_args
from llava.eval.engine.loop import Loaded, add_model_arguments, generate, load
from llava.eval.engine.prompts import collate, encode, user_turn
from llava.eval.engine.sampling import check_decoding
from llava.eval.run_llava import EMBEDDED
from llava.mm_utils import load_image

DEFAULT_NEW_TOKENS = 512


def answer(loaded: Loaded, prompt: str, images: list[Image.Image], args: argparse.Namespace) -> str:
    """Stream the model's next turn to stdout and return it.

    The whole conversation is encoded anew, so that every turn's question chooses its own vision tokens.
    """
    batch = collate([encode(prompt, images, loaded.tokenizer, loaded.image_processor, loaded.model.config)])
    streamer = TextStreamer(loaded.tokenizer, skip_special_tokens=True)
    return generate(loaded, batch, args, [prompt], streamer)[0]


def read_line(role: str) -> str | None:
    try:
        return input(f"{role}: ").strip()
    except EOFError:
        return None


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_model_arguments(parser, default_path=str(EMBEDDED))
    parser.add_argument("--image-file", help="the first picture")
    parser.set_defaults(max_new_tokens=DEFAULT_NEW_TOKENS)
    args = parser.parse_args(argv)
    mapping = dart_config_from_args(args)
    check_decoding(args)
    images = [load_image(args.image_file)] if args.image_file else []
    loaded = load(args)
    loaded.model.config.DART_config = mapping
    conversation = get_template(args.conv_mode)
    pending = len(images)
    while (line := read_line(conversation.roles[0])) not in (None, "/exit"):
        if line.startswith("/image "):
            try:
                images.append(load_image(line.removeprefix("/image ").strip()))
                pending += 1
            except (FileNotFoundError, ValueError) as error:
                print(f"error: {error}", file=sys.stderr)
            continue
        if not line:
            continue
        conversation.append_message(conversation.roles[0], user_turn(line, pending, loaded.model.config))
        conversation.append_message(conversation.roles[1], None)
        pending = 0
        print(f"{conversation.roles[1]}: ", end="", flush=True)
        text = answer(loaded, conversation.get_prompt(), images, args)
        conversation.messages[-1] = [conversation.roles[1], text]


if __name__ == "__main__":
    main()
