"""Put what was trained onto its base: `python scripts/merge_lora_weights.py --model-path LORA --model-base BASE
--save-model-path FOLDER`.

LORA: a checkpoint of LoRA or of stage 1, in a folder of any name. FOLDER: a whole LLaVA, its vision tower included.
"""

from __future__ import annotations

from dart.utils import DTYPES, Parser, exits_cleanly
from llava.model.builder import load_pretrained_model
from llava.train.checkpoints import mend_generation, write_tower


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("--model-path", required=True, help="folder with what was trained")
    parser.add_argument("--model-base", required=True, help="the model that it was trained on")
    parser.add_argument("--save-model-path", required=True, help="folder of the merged model")
    parser.add_argument("--torch-dtype", default="float16", choices=DTYPES)
    args = parser.parse_args(argv)
    tokenizer, model, processor, _ = load_pretrained_model(
        args.model_path, args.model_base, device="cpu", torch_dtype=args.torch_dtype
    )
    for note in mend_generation(model):
        print(note)
    model.save_pretrained(args.save_model_path)
    tokenizer.save_pretrained(args.save_model_path)
    write_tower(model, processor, args.save_model_path)
    print(f"wrote {args.save_model_path}: a whole LLaVA, load it without --model-base")


if __name__ == "__main__":
    main()
