"""The one evaluation loop: questions in, answers out, in batches, resumable."""

from __future__ import annotations

import argparse
import hashlib
import itertools
import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm
from transformers import GenerationConfig

from llava.cli_errors import UserError
from llava.constants import DEFAULT_IM_END_TOKEN, DEFAULT_IM_START_TOKEN, DEFAULT_IMAGE_TOKEN
from llava.conversation import get_template
from llava.dart_args import add_dart_arguments, check_image_span, dart_config_from_args
from llava.eval.answers import AnswersFile, answer_id, read_lines
from llava.mm_utils import get_model_name_from_path, load_image, process_images, tokenizer_image_token
from llava.model.builder import load_pretrained_model

QUESTION_FIELDS = ("question_id", "image", "text")


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory."""

    tokenizer: Any
    model: Any
    image_processor: Any
    name: str


def add_model_arguments(parser: argparse.ArgumentParser, default_path: str | None = None) -> None:
    """Flags of the model, of decoding and of DART. default_path: a checkpoint to use when none is named."""
    parser.add_argument(
        "--model-path",
        required=default_path is None,
        default=default_path,
        help="folder or hub name of a LLaVA checkpoint",
    )
    parser.add_argument("--model-base")
    parser.add_argument("--device")
    parser.add_argument("--torch-dtype", choices=("float32", "float16", "bfloat16"))
    parser.add_argument("--conv-mode", default="vicuna_v1")
    parser.add_argument("--temperature", type=float, default=0.0)
    parser.add_argument("--top_p", type=float)
    parser.add_argument("--num_beams", type=int, default=1)
    parser.add_argument("--max_new_tokens", type=int, default=128)
    add_dart_arguments(parser)


def add_loop_arguments(parser: argparse.ArgumentParser, files: bool = True) -> None:
    """files: with the two flags that name the pictures' folder and the question file."""
    add_model_arguments(parser)
    if files:
        parser.add_argument("--image-folder", required=True)
        parser.add_argument("--question-file", required=True)
    parser.add_argument("--answers-file", required=True)
    parser.add_argument("--num-chunks", type=int, default=1)
    parser.add_argument("--chunk-idx", type=int, default=0)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--num-workers", type=int, default=0, help="processes that read pictures ahead")
    parser.add_argument("--overwrite", action="store_true", help="throw earlier answers away")
    parser.add_argument(
        "--blind", action="store_true", help="replace every picture by grey: what can be answered without it"
    )
    parser.add_argument(
        "--is_textvqa",
        action="store_true",
        help="accepted for the original's scripts; prompts are the question file's either way",
    )


def load(args: argparse.Namespace) -> Loaded:
    tokenizer, model, processor, _ = load_pretrained_model(
        args.model_path,
        args.model_base,
        None,
        device=args.device,
        torch_dtype=args.torch_dtype,
        attn_implementation=args.attn_implementation,
    )
    own = model.generation_config
    # The flags alone decide how to decode; a checkpoint's own defaults (max_length, temperature, ...) would mix in.
    model.generation_config = GenerationConfig(
        bos_token_id=own.bos_token_id, eos_token_id=own.eos_token_id, pad_token_id=own.pad_token_id
    )
    return Loaded(tokenizer, model, processor, get_model_name_from_path(args.model_path))


def read_questions(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The questions of this chunk. Raises UserError for a broken line, a missing field or a wrong chunk."""
    path = Path(args.question_file)
    questions = list(read_lines(path))
    for number, row in enumerate(questions, 1):
        if missing := [f for f in QUESTION_FIELDS if f not in row]:
            raise UserError(
                f"{path} question {number} lacks {', '.join(missing)}; expected the fields {', '.join(QUESTION_FIELDS)}"
            )
    if args.num_chunks < 1 or not 0 <= args.chunk_idx < args.num_chunks:
        raise UserError(f"--chunk-idx {args.chunk_idx} must be between 0 and --num-chunks {args.num_chunks} - 1")
    size = math.ceil(len(questions) / args.num_chunks)
    return questions[args.chunk_idx * size : (args.chunk_idx + 1) * size]


def build_prompt(question: str, config: Any, mode: str) -> str:
    """The whole prompt of one question about one picture."""
    place = DEFAULT_IMAGE_TOKEN
    if getattr(config, "mm_use_im_start_end", False):
        place = DEFAULT_IM_START_TOKEN + place + DEFAULT_IM_END_TOKEN
    conversation = get_template(mode)
    conversation.append_message(conversation.roles[0], f"{place}\n{question}")
    conversation.append_message(conversation.roles[1], None)
    return conversation.get_prompt()


Example = tuple[torch.Tensor, torch.Tensor]
Batch = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class Examples(Dataset):
    """(ids LongTensor [S], pixels [1, 3, H, W]) of each question, or the error to raise for an unreadable picture."""

    def __init__(self, questions: list[dict[str, Any]], loaded: Loaded, args: argparse.Namespace):
        self.questions, self.loaded, self.args = questions, loaded, args

    def __len__(self) -> int:
        return len(self.questions)

    def __getitem__(self, k: int) -> Example | UserError:
        question, loaded = self.questions[k], self.loaded
        try:
            image = load_image(str(Path(self.args.image_folder) / question["image"]))
        except (FileNotFoundError, ValueError) as error:
            return UserError(f"question {question['question_id']}: {error}; answers so far are kept")
        if self.args.blind:
            image = image.point(lambda _: 128)
        pixels = process_images([image], loaded.image_processor, loaded.model.config)
        prompt = build_prompt(question["text"], loaded.model.config, self.args.conv_mode)
        return tokenizer_image_token(prompt, loaded.tokenizer, return_tensors="pt"), pixels


def _collate(examples: list[Example | UserError]) -> tuple[Batch | None, UserError | None]:
    """The examples before the first failed one as one left-padded batch (None without any), and that failure."""
    errors = [e for e in examples if isinstance(e, UserError)]
    good = list(itertools.takewhile(lambda e: not isinstance(e, UserError), examples))
    error = errors[0] if errors else None
    if not good:
        return None, error
    ids, pixels = zip(*good, strict=True)
    masks = [torch.ones_like(i) for i in ids]
    left = {"batch_first": True, "padding_side": "left"}
    return (pad_sequence(list(ids), **left), pad_sequence(masks, **left), torch.cat(pixels)), error


def sampling_of(args: argparse.Namespace) -> dict[str, Any]:
    """`generate`'s arguments for --temperature and --top_p; a temperature of 0 is greedy."""
    if args.temperature > 0:
        return {"do_sample": True, "temperature": args.temperature, "top_p": args.top_p}
    return {"do_sample": False}


def generate(loaded: Loaded, batch: Batch, args: argparse.Namespace) -> list[str]:
    """The answers of one batch."""
    model, tokenizer = loaded.model, loaded.tokenizer
    ids, mask, pixels = (t.to(model.device) for t in batch)
    out = model.generate(
        ids,
        images=pixels.to(model.dtype),
        attention_mask=mask,
        num_beams=args.num_beams,
        max_new_tokens=args.max_new_tokens,
        pad_token_id=tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
        **sampling_of(args),
    )
    return [text.strip() for text in tokenizer.batch_decode(out, skip_special_tokens=True)]


def settings_of(args: argparse.Namespace, mapping: dict[str, Any] | None) -> dict[str, Any]:
    """What the answers depend on; a resumed run must have the same."""
    names = (
        "conv_mode",
        "temperature",
        "top_p",
        "num_beams",
        "max_new_tokens",
        "num_chunks",
        "chunk_idx",
        "blind",
        "torch_dtype",
    )
    digest = hashlib.sha256(Path(args.question_file).read_bytes()).hexdigest()
    return {n: getattr(args, n) for n in names} | {
        "model_path": args.model_path,
        "dart": mapping,
        "question_file_sha256": digest,
    }


def _describe(loaded: Loaded) -> str:
    handle = loaded.model.dart_handle
    if handle is None or handle.last is None:
        return "strategy: none, all vision tokens kept"
    last = handle.last
    return (
        f"strategy: {handle.config.strategy}, vision tokens: "
        f"{last.visual_before[0]} -> {last.visual_after[0]} from layer {last.layer}, "
        f"{last.mean_visual_tokens[0]:.1f} as a mean over {last.layers} layers"
    )


def check_first_span(loaded: Loaded, batch: Batch, args: argparse.Namespace) -> None:
    """The two image_token_* flags against the first input, before anything is answered."""
    if args.image_token_start_index is None and args.image_token_length is None:
        return
    ids, mask, pixels = (t[:1].to(loaded.model.device) for t in batch)
    merged = loaded.model.merge(ids, pixels, mask, None)
    check_image_span(args, merged.visual_span_ids[0].cpu())


def run(args: argparse.Namespace, loaded: Loaded | None = None) -> int:
    """Answer what is not answered yet; returns the number of new answers.

    loaded: a model to reuse (its DART setting is replaced). Raises UserError for bad input; answers so far are kept.
    """
    mapping = dart_config_from_args(args)
    if args.batch_size < 1:
        raise UserError(f"--batch-size must be 1 or more, got {args.batch_size}")
    get_template(args.conv_mode)
    questions = read_questions(args)
    loaded = loaded or load(args)
    loaded.model.config.DART_config = mapping
    print(f"model: {args.model_path}\ndata: {args.question_file} ({len(questions)} questions)", flush=True)
    with AnswersFile(Path(args.answers_file), settings_of(args, mapping), args.overwrite) as answers:
        todo = answers.open_questions(questions)
        if len(todo) < len(questions):
            print(f"resuming: {len(questions) - len(todo)} answers are there already")
        examples = Examples(todo, loaded, args)
        batches = DataLoader(examples, args.batch_size, collate_fn=_collate, num_workers=args.num_workers)
        began = time.monotonic()
        bar = tqdm(
            total=len(questions), initial=len(questions) - len(todo), desc="answers", file=sys.stderr, mininterval=2
        )
        at = 0
        for batch, error in batches:
            if batch is None:
                raise error
            if at == 0:
                check_first_span(loaded, batch, args)
            texts = generate(loaded, batch, args)
            if at == 0:
                bar.write(_describe(loaded), file=sys.stdout)
            for question, text in zip(todo[at : at + len(texts)], texts, strict=True):
                answers.append(
                    {
                        "question_id": question["question_id"],
                        "prompt": question["text"],
                        "text": text,
                        "answer_id": answer_id(question["question_id"], question["text"], text),
                        "model_id": loaded.name,
                        "metadata": {},
                    }
                )
            at += len(texts)
            bar.update(len(texts))
            if error is not None:
                raise error
        bar.close()
    seconds = time.monotonic() - began
    print(f"answered {at} questions in {seconds:.1f} s" + (f" ({at / seconds:.1f} a second)" if at else ""))
    return at
