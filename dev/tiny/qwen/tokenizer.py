"""The tiny Qwen models' tokenizer: byte-level BPE with Qwen's special tokens, every word of the world one token."""

from __future__ import annotations

import json
from pathlib import Path

import sentencepiece
import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from dev.tiny.questions import SHORT_ANSWER, YES_NO_REQUEST
from dev.tiny.tokenizer import FIRST_WORDS, WORDS

SYSTEM = "You are a helpful assistant."
SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>",
    "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
    "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
# Qwen's rule for where words end; digits stand alone.
WORD = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
VOCAB_SIZE = 512
REPEATS = 30
MORE_WORDS = ("first", "second", "video", "images", "question", "using", "single", "word", "or", "phrase")
LLAMA_END = "</s>"


def train_tokenizer(path: Path) -> None:
    """Writes tokenizer.json."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORD), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    lines = [f"system\n{SYSTEM}\nuser\n\nassistant\n", SHORT_ANSWER, YES_NO_REQUEST]
    lines += [f"{w} {w}" for w in (*WORDS, *MORE_WORDS)] + list(FIRST_WORDS)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(SPECIALS), initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator([line for line in lines for _ in range(REPEATS)], trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIALS])
    tokenizer.save(str(path))


def vocabulary_files(tokenizer: Tokenizer) -> dict[str, str]:
    """Contents of the files that stand beside tokenizer.json in Qwen's checkpoints."""
    model = json.loads(tokenizer.to_str())["model"]
    merges = "".join(" ".join(pair) + "\n" for pair in model["merges"])
    return {"vocab.json": json.dumps(model["vocab"], ensure_ascii=False), "merges.txt": "#version: 0.2\n" + merges}


@torch.no_grad()
def carry_over(old: torch.Tensor, pieces: sentencepiece.SentencePieceProcessor, tokenizer: Tokenizer) -> torch.Tensor:
    """Embeddings [V, D] of this tokenizer's words from those of the tiny LLaVA; words it lacks start at random."""
    generator = torch.Generator().manual_seed(0)
    size = tokenizer.get_vocab_size()
    new = torch.randn(size, old.shape[1], generator=generator) * old.shape[1] ** -0.5
    for token in range(size):
        text = tokenizer.decode([token], skip_special_tokens=False)
        names = ("▁" + text.strip(), text.strip()) if text.startswith(" ") else (text, "▁" + text)
        if text == "<|im_end|>":
            names = (LLAMA_END,)
        found = [pieces.piece_to_id(n) for n in names if n.strip("▁") and pieces.piece_to_id(n) != pieces.unk_id()]
        if found:
            new[token] = old[found[0]]
    return new
