"""Ask about one image or several: `python -m llava.eval.run_llava --image-file X --query Q [--sparse]`."""

from __future__ import annotations

import sys

from dart.utils import Parser, exits_cleanly
from llava.conversation import get_template
from llava.dart_args import dart_config, pruned
from llava.eval.engine.loop import check_first_span
from llava.eval.engine.model import add_model_arguments, generate, load
from llava.eval.engine.prompts import build_prompt, collate, encode
from llava.eval.engine.sampling import check_decoding
from llava.files import EMBEDDED_MODEL
from llava.mm_utils import load_image


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    add_model_arguments(parser, default_path=str(EMBEDDED_MODEL))
    parser.add_argument("--image-file", required=True, help="one image, or several joined by --sep")
    parser.add_argument("--sep", default=",", help="what separates several image files (,)")
    parser.add_argument("--query", required=True, help="the question")
    args = parser.parse_args(argv)
    dart_config(args)
    check_decoding(args)
    get_template(args.conv_mode)
    images = [load_image(source) for source in args.image_file.split(args.sep)]
    loaded = load(args)
    if args.model_path == str(EMBEDDED_MODEL):
        print(f"model: the embedded one, {EMBEDDED_MODEL.name}; --model-path names another", file=sys.stderr)
    config = loaded.model.config
    prompt = build_prompt(args.query, config, args.conv_mode, len(images))
    batch = collate([encode(prompt, images, loaded.tokenizer, loaded.image_processor, config)])
    if args.sparse:
        check_first_span(loaded, batch, args)
    with pruned(loaded.model, args) as handle:
        print(generate(loaded, batch, args, [prompt])[0])
        if handle is not None and handle.last is not None:
            print(f"visual tokens: {handle.last.visual_before[0]} -> {handle.last.visual_after[0]}", file=sys.stderr)


if __name__ == "__main__":
    main()
