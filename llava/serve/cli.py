"""Talk about an image: `python -m llava.serve.cli --image-file X [--sparse]`.

/image PATH adds an image; /exit, Ctrl-C or the end of the input leaves.
"""

from __future__ import annotations

import argparse
import sys

from PIL import Image
from transformers import TextStreamer

from dart.utils import Parser, exits_cleanly
from llava.constants import DEFAULT_IMAGE_TOKEN
from llava.conversation import Conversation, get_template
from llava.dart_args import dart_config, pruned
from llava.eval.engine.model import Loaded, add_model_arguments, generate, load
from llava.eval.engine.prompts import collate, encode, user_turn
from llava.eval.engine.sampling import check_decoding
from llava.files import EMBEDDED_MODEL
from llava.mm_utils import load_image

DEFAULT_NEW_TOKENS = 512


def answer(loaded: Loaded, prompt: str, images: list[Image.Image], args: argparse.Namespace) -> str:
    """Stream the model's next turn to stdout and return it.

    The whole conversation is encoded anew, so that every turn's question chooses its own visual tokens.
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
    parser = Parser(description=__doc__)
    add_model_arguments(parser, default_path=str(EMBEDDED_MODEL))
    parser.add_argument("--image-file", help="the first image")
    parser.set_defaults(max_new_tokens=DEFAULT_NEW_TOKENS)
    args = parser.parse_args(argv)
    dart_config(args)
    check_decoding(args)
    images = [load_image(args.image_file)] if args.image_file else []
    conversation = get_template(args.conv_mode)
    loaded = load(args)
    with pruned(loaded.model, args):
        talk(loaded, conversation, images, args)


def talk(loaded: Loaded, conversation: Conversation, images: list[Image.Image], args: argparse.Namespace) -> None:
    """Turn after turn, until the user leaves."""
    user, assistant = conversation.roles
    pending = len(images)
    while (line := read_line(user)) not in (None, "/exit"):
        if line.startswith("/image "):
            try:
                images.append(load_image(line.removeprefix("/image ").strip()))
                pending += 1
            except (FileNotFoundError, ValueError) as error:
                print(f"error: {error}", file=sys.stderr)
            continue
        if DEFAULT_IMAGE_TOKEN in line:
            print(f"error: {DEFAULT_IMAGE_TOKEN} stands for an image: add one with /image PATH", file=sys.stderr)
            continue
        if not line:
            continue
        conversation.append_message(user, user_turn(line, pending, loaded.model.config))
        conversation.append_message(assistant, None)
        pending = 0
        print(f"{assistant}: ", end="", flush=True)
        text = answer(loaded, conversation.get_prompt(), images, args)
        conversation.messages[-1] = [assistant, text]


if __name__ == "__main__":
    main()
