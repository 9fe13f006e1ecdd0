"""The one evaluation loop: questions in, answers out, in batches, resumable."""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from dart import PruneHandle, PruneReport
from dart.utils import Unfinished, UserError, checkpoint_folder, write_json
from llava.constants import IMAGE_TOKEN_INDEX
from llava.conversation import get_template
from llava.dart_args import check_image_span, dart_config, dart_settings, pruned
from llava.eval.engine.answers import AnswersFile, Key, answer_id, check_regular, key_of, settings_file
from llava.eval.engine.examples import Example, chunk_of, content_of, digest_of, open_questions, read_question_file
from llava.eval.engine.model import Loaded, add_model_arguments, base_folder, generate, load
from llava.eval.engine.prompts import Batch, Encoded, build_prompt, collate, encode
from llava.eval.engine.ranks import (
    Ranks,
    answers_so_far,
    failed_so_far,
    failures_file,
    merge,
    parts_of,
    remove,
    write_failures,
)
from llava.eval.engine.sampling import check_decoding
from llava.files import fingerprint
from llava.mm_utils import get_model_name_from_path

GREY = 128
VISUAL_TOKENS, TOKEN_DIGITS = "visual_tokens", 4  # in an answer's metadata
GPU_WORKERS = 2
SETTINGS = [
    "torch_dtype", "attn_implementation", "conv_mode", "temperature", "top_p", "num_beams", "max_new_tokens", "blind",
    "num_chunks", "chunk_idx", "blur", "revision", "model_base_revision",
]  # fmt: skip


def add_loop_arguments(parser: argparse.ArgumentParser, files: bool = True) -> None:
    """files: with the two flags that name the images' folder and the question file."""
    add_model_arguments(parser)
    if files:
        parser.add_argument("--image-folder", required=True, help="folder of the questions' images")
        parser.add_argument("--question-file", required=True, help="JSON lines: question_id, image, text")
    parser.add_argument("--answers-file", required=True, help="JSON lines to write; what is in it is not asked again")
    parser.add_argument("--num-chunks", type=int, default=1, help="parts that the questions are cut into (1)")
    parser.add_argument("--chunk-idx", type=int, default=0, help="which part to answer, from 0")
    parser.add_argument("--batch-size", type=int, default=1, help="questions that are answered at once (1)")
    parser.add_argument(
        "--num-workers",
        type=int,
        help=f"processes that read images ahead (default: {GPU_WORKERS} beside a GPU, none where the CPU computes)",
    )
    parser.add_argument("--overwrite", action="store_true", help="throw earlier answers away")
    parser.add_argument(
        "--on-error",
        choices=("fail", "skip"),
        default="fail",
        help="skip: a question whose image cannot be read is left out and listed in ANSWERS.failed; the run goes on, "
        "ends with exit code 1, and the same command asks it again",
    )
    parser.add_argument(
        "--blind", action="store_true", help="replace every image by grey: what can be answered without it"
    )
    parser.add_argument(
        "--blur", type=int, metavar="D", help="reduce every image by D per side and enlarge it again: fewer details"
    )
    parser.add_argument(
        "--is_textvqa",
        action="store_true",
        help="accepted and ignored: the question file's prompts say themselves whether they hold OCR text",
    )


class EncodedExamples(Dataset):
    """Each example's prompt and image, or the error to raise for an unreadable image."""

    def __init__(self, examples: Sequence[Example], loaded: Loaded, args: argparse.Namespace):
        self.examples, self.loaded, self.args = examples, loaded, args

    def __len__(self) -> int:
        return len(self.examples)

    def __getitem__(self, k: int) -> Encoded | UserError:
        example, loaded, config = self.examples[k], self.loaded, self.loaded.model.config
        try:
            image = example.picture()
        except (FileNotFoundError, ValueError) as error:
            return UserError(f"question {example.question_id}: {error}")
        if image is not None and self.args.blind:
            image = image.point(lambda _: GREY)
        if image is not None and self.args.blur:
            image = blurred(image, self.args.blur)
        images = [] if image is None else [image]
        prompt = build_prompt(example.text, config, self.args.conv_mode, len(images))
        return encode(prompt, images, loaded.tokenizer, loaded.image_processor, config)


def blurred(image: Image.Image, factor: int) -> Image.Image:
    """The image reduced by `factor` per side and enlarged to its size again: less to see, not fewer tokens."""
    small = (max(1, round(image.width / factor)), max(1, round(image.height / factor)))
    return image.resize(small, Image.Resampling.BICUBIC).resize(image.size, Image.Resampling.BICUBIC)


def batches_of(examples: Sequence[Example], size: int) -> Iterator[list[int]]:
    """Indices of consecutive examples, at most `size` together, with and without images apart."""
    for _, group in itertools.groupby(range(len(examples)), key=lambda k: examples[k].image is None):
        same = list(group)
        yield from (same[k : k + size] for k in range(0, len(same), size))


def workers_of(args: argparse.Namespace, loaded: Loaded) -> int:
    """Processes that read and encode images while the model answers."""
    if args.num_workers is not None:
        return args.num_workers
    return GPU_WORKERS if loaded.model.device.type == "cuda" else 0


def _collate(rows: list[Encoded | UserError]) -> tuple[Batch | None, list[UserError | None]]:
    """What could be encoded as one batch, None without any; for each row its error."""
    good = [row for row in rows if isinstance(row, Encoded)]
    return (collate(good) if good else None), [row if isinstance(row, UserError) else None for row in rows]


def _collate_to_first_error(rows: list[Encoded | UserError]) -> tuple[Batch | None, list[UserError | None]]:
    """As `_collate`, without the rows after the first error."""
    errors = (number for number, row in enumerate(rows, 1) if isinstance(row, UserError))
    return _collate(rows[: next(errors, len(rows))])


def settings_of(args: argparse.Namespace, examples: Sequence[Example]) -> dict[str, Any]:
    """What the answers depend on; a resumed run must have the same."""
    failed = {key: row.get("picture") for key, row in failed_so_far(Path(args.answers_file)).items()}
    return {name: getattr(args, name) for name in SETTINGS} | {
        "model": get_model_name_from_path(args.model_path),
        "model_base": args.model_base and get_model_name_from_path(args.model_base),
        "dart": dart_settings(args),
        "seed": args.seed if args.temperature > 0 else None,
        "questions_sha256": digest_of(examples, failed),
        "checkpoint_sha256": [
            fingerprint(checkpoint_folder(args.model_path, args.revision)),
            fingerprint(base_folder(args)),
        ],
    }


def _describe(handle: PruneHandle | None) -> str:
    if handle is None or handle.last is None:
        return "strategy: none, all visual tokens kept"
    last = handle.last
    return (
        f"strategy: {handle.config.strategy}, visual tokens: "
        f"{last.visual_before[0]} -> {last.visual_after[0]} from layer {last.layer}, "
        f"{last.mean_visual_tokens[0]:.1f} as a mean over {last.layers} layers"
    )


def check_first_span(loaded: Loaded, batch: Batch, args: argparse.Namespace) -> None:
    """The two image_token_* flags against the first input, before anything is answered."""
    if batch.images is None or (args.image_token_start_index is None and args.image_token_length is None):
        return
    model = loaded.model
    pictures = int((batch.ids[0] == IMAGE_TOKEN_INDEX).sum())
    first = Batch(batch.ids[:1], batch.mask[:1], list(batch.images[:pictures]), batch.sizes[:pictures]).inputs(model)
    merged = model.merge(first["inputs"], first["images"], first["attention_mask"], None, first["image_sizes"])
    check_image_span(args, merged.visual_span_ids[0].cpu())


def answer_row(example: Example, text: str, model_id: str, metadata: dict[str, Any]) -> dict[str, Any]:
    """A line of LLaVA's answers file."""
    return {
        "question_id": example.question_id,
        "prompt": example.prompt,
        "text": text,
        **example.fields,
        "answer_id": answer_id(example.question_id, example.prompt, text),
        "model_id": model_id,
        "metadata": metadata,
    }


def failure_row(example: Example, error: UserError) -> dict[str, Any]:
    """A line of the list of failures."""
    picture = content_of(example.image) if isinstance(example.image, Path) else None
    return {"question_id": example.question_id, "prompt": example.prompt, "error": str(error), "picture": picture}


def tokens_of(handle: PruneHandle | None, batch: Batch) -> list[dict[str, Any]]:
    """For each row of the batch just answered, the visual tokens it really had; nothing where nothing counts them."""
    rows = len(batch.ids)
    if handle is None or handle.last is None or batch.images is None:
        return [{} for _ in range(rows)]
    last = handle.last
    beams = len(last.visual_before) // rows
    counts = zip(last.visual_before, last.visual_after, last.mean_visual_tokens, strict=True)
    return [
        {VISUAL_TOKENS: {"before": before, "after": after, "mean": round(mean, TOKEN_DIGITS)}}
        for before, after, mean in list(counts)[::beams]
    ]


class Outcome(NamedTuple):
    """complete: is the answers file complete, for this process to go on with? report: of the last pruned prefill."""

    complete: bool
    report: PruneReport | None


def run(args: argparse.Namespace, loaded: Loaded | None = None, examples: Sequence[Example] | None = None) -> Outcome:
    """Answer what is not answered yet.

    Of several processes (see `llava.eval.engine.ranks`) each answers its share, and `complete` is True in one of them:
    the one that merges their answers, or the first where nothing was left to answer.

    loaded: a model to reuse. examples: the questions; by default those of --question-file. Raises UserError for bad
    input; answers so far are kept.
    """
    ranks, path = Ranks.from_environment(), Path(args.answers_file)
    _check_flags(args, ranks)
    if examples is None:
        examples = read_question_file(Path(args.question_file), Path(args.image_folder))
    examples = chunk_of(examples, args.num_chunks, args.chunk_idx)
    settings = settings_of(args, examples)
    if not args.overwrite:
        answers_so_far(path, settings)  # refused before a model is loaded
    _say(f"model: {args.model_path}\ndata: {args.question_file} ({len(examples)} questions)", ranks)
    if ranks.count > 1:
        write_failures(ranks.part(path), [], keep=True)  # asked again: no process ends over them meanwhile
    loaded = loaded or load(args, ranks)
    if args.overwrite:
        remove(*parts_of(path))
    with AnswersFile(ranks.part(path), settings, args.overwrite) as answers, pruned(loaded.model, args) as handle:
        done = answers_so_far(path, settings)
        try:
            _answer(examples, ranks, done, answers, loaded, args, handle)
        finally:
            now = settings_of(args, examples)
            if ranks.count == 1 and now != settings:  # a picture that could not be read may be mended
                settings = now
                for each in (path, *parts_of(path)):
                    write_json(settings_file(each), settings)
        report = None if handle is None else handle.last
    _check_failures(path, examples, settings)
    merged = merge(path, examples, settings)
    if merged:  # the lists of failures are gone with the parts
        write_json(settings_file(path), settings_of(args, examples))
    alone = ranks.count == 1 or not open_questions(examples, done)
    return Outcome(ranks.index == 0 if alone else merged, report)


def _check_failures(path: Path, examples: Sequence[Example], settings: dict[str, Any]) -> None:
    """Raises Unfinished when nothing is left to ask but questions that failed.

    Before that a process of several ends without an error, which would end the others too.
    """
    left = open_questions(examples, answers_so_far(path, settings))
    failed = {key: row["error"] for key, row in failed_so_far(path).items() if row.get("error")}
    if left and all(key_of(example.question_id, example.prompt) in failed for example in left):
        raise Unfinished(
            f"{len(left)} of {len(examples)} questions failed and have no answer, the first one: "
            f"{failed[key_of(left[0].question_id, left[0].prompt)]}; they are listed beside the answers "
            f"({failures_file(path).name}), the same command asks them again"
        )


def check_values(args: argparse.Namespace) -> None:
    """Raises UserError or ValueError for values of flags that no run can have."""
    dart_config(args)
    check_decoding(args)
    if args.blur is not None and args.blur < 1:
        raise UserError(f"--blur must be 1 or more, got {args.blur}")
    if args.batch_size < 1:
        raise UserError(f"--batch-size must be 1 or more, got {args.batch_size}")
    get_template(args.conv_mode)


def _check_flags(args: argparse.Namespace, ranks: Ranks) -> None:
    """Raises UserError for what can be refused before anything is read."""
    check_values(args)
    answers, questions = Path(args.answers_file), Path(args.question_file)
    check_regular(answers)
    if answers.resolve() == questions.resolve() or _same(answers, questions):
        raise UserError(f"--answers-file and the question file are both {answers}: choose another --answers-file")
    if args.overwrite and ranks.count > 1:
        raise UserError(
            "--overwrite is for a single process; run it once without accelerate launch, or choose another file"
        )


def _same(a: Path, b: Path) -> bool:
    return a.exists() and b.exists() and a.samefile(b)


def _say(text: str, ranks: Ranks) -> None:
    """A line about this process. Of several it goes to stderr: stdout has the figures alone, whoever ends first."""
    tqdm.write(text, file=sys.stdout if ranks.count == 1 else sys.stderr)
    sys.stdout.flush()


def _answer(
    examples: Sequence[Example],
    ranks: Ranks,
    done: Counter[Key],
    answers: AnswersFile,
    loaded: Loaded,
    args: argparse.Namespace,
    handle: PruneHandle | None,
) -> None:
    """Append the answers of this process's examples without one, each batch as soon as it is there.

    done: answers there are.
    """
    examples = ranks.share(examples)
    todo = open_questions(examples, done)
    there, began = len(examples) - len(todo), time.monotonic()
    if there:
        _say(f"resuming: {there} answers are there already", ranks)
    batches = list(batches_of(todo, args.batch_size))
    encoded = EncodedExamples(todo, loaded, args)
    skip = args.on_error == "skip"
    failed: list[dict[str, Any]] = []
    stream = DataLoader(
        encoded,
        batch_sampler=batches,
        collate_fn=_collate if skip else _collate_to_first_error,
        num_workers=workers_of(args, loaded),
    )
    with tqdm(total=len(examples), initial=there, desc="answers", file=sys.stderr, mininterval=2) as bar:
        described = False
        for places, (batch, errors) in zip(batches, stream, strict=True):
            if batch is not None:
                first = not described and batch.images is not None
                if first:
                    check_first_span(loaded, batch, args)
                asked = [todo[k] for k, error in zip(places, errors, strict=False) if error is None]
                texts = generate(loaded, batch, args, [(e.question_id, e.prompt) for e in asked])
                if first:
                    _say(_describe(handle), ranks)
                    described = True
                for example, text, tokens in zip(asked, texts, tokens_of(handle, batch), strict=True):
                    answers.append(answer_row(example, text, loaded.name, tokens))
                bar.update(len(asked))
            for k, error in zip(places, errors, strict=False):
                if error is None:
                    continue
                failed.append(failure_row(todo[k], error))
                if not skip:
                    write_failures(answers.path, failed, keep=ranks.count > 1)
                    raise UserError(f"{error}; answers so far are kept (--on-error skip goes on without it)")
                bar.update()
    write_failures(answers.path, failed, keep=ranks.count > 1)
    seconds, rate = time.monotonic() - began, ""
    if todo:
        rate = f" ({len(todo) / seconds:.1f} per second)"
    left_out = f", {len(failed)} failed" if failed else ""
    _say(f"answered {len(todo) - len(failed)} questions in {seconds:.1f} s{rate}{left_out}", ranks)
