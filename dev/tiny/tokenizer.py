"""The tiny model's sentencepiece tokenizer: vicuna_v1's prefix is 35 tokens with BOS, every word one token."""

from __future__ import annotations

import io
from pathlib import Path

import sentencepiece

from dev.tiny.questions import COUNT_WORDS, SHORT_ANSWER
from llava.eval.probe.drawing import COLORS, KINDS

SYSTEM = (
    "A chat between a curious user and an artificial intelligence assistant. "
    "The assistant gives helpful, detailed, and polite answers to the user's questions."
)
VOCAB_SIZE = 640
FIRST_WORDS = ("What", "Is", "How", "Answer", "what", "does")
WORDS = (
    *COLORS, *KINDS, *COUNT_WORDS, "Yes", "No", "shapes", "shape", "many", "are", "there", "in", "the", "image", "on",
    "left", "right", "side", "number", "color", "of", "is", "a", "not", "no", "contain", "present", "Please", "answer",
    "yes",
)  # fmt: skip
SPLITS = ("ER", "ious")  # US|ER, cur|ious


def train_tokenizer(path: Path) -> None:
    """Writes `tokenizer.model` (BPE with byte fallback, identity normalisation, digits apart, specials as Llama's)."""
    lines = [SYSTEM + " USER: ASSISTANT:"] * 20 + [SHORT_ANSWER] * 20
    lines += [f"{w} {w}" for w in WORDS for _ in range(30)]
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=VOCAB_SIZE,
        byte_fallback=True,
        split_digits=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        character_coverage=1.0,
        hard_vocab_limit=False,
        user_defined_symbols=[*FIRST_WORDS, *SPLITS, *map(str, range(10))],
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=-1,
        minloglevel=2,
    )
    path.write_bytes(model.getvalue())
