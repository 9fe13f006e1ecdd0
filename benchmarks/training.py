"""A step of fine-tuning: plain, with dropped tokens, and EPIC's: `python -m benchmarks.training --out FILE`.

Each way trains in a process of its own, with the same random weights and batch, by the Trainer classes that users run.
The vision tower does not learn. A step is everything from the batch to the optimizer's end; EPIC's ramps run through
the measured steps from beginning to end, so that its mean is that of a whole training. Memory is what the process takes
at most beyond the loaded weights: gradients, AdamW's state, activations (on a CPU resident memory, with the allocator's
rest). Rounds run forwards and backwards by turns. Prints a table, and one JSON line last.
"""

from __future__ import annotations

import argparse
import multiprocessing
import resource
import statistics
import tempfile
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

import dart
from benchmarks.arguments import budget, positive
from benchmarks.measure import summary
from benchmarks.output import print_table, publish
from benchmarks.shapes import SHAPES, build, workload
from dart.cli.measure import now
from dart.epic import EpicTrainer
from dart.training import DartCallback, DartTrainer
from dart.utils import DTYPES, Parser, UserError, device_of, exits_cleanly, provenance

WAYS = ("plain", "dart", "tcd", "lcd")
ANSWER_TOKENS = 16  # learned, at the end of the prompt
WARM_UP = 1  # steps at the beginning that are not counted
IGNORED = -100
KIBI = 1024
MEGA = 1e6


class PlainTrainer(DartTrainer, Trainer):
    """With or without dropped tokens."""


class DistillingTrainer(EpicTrainer, Trainer):
    """EPIC."""


class Clock(TrainerCallback):
    """Seconds of every step."""

    def __init__(self, device: torch.device):
        self.device, self.began = device, 0.0
        self.seconds: list[float] = []

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self.began = now(self.device)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds.append(now(self.device) - self.began)


def memory_now(device: torch.device) -> int:
    """Bytes that are in use, from where `peak_since` counts."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.memory_allocated(device)
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def peak_since(before: int, device: torch.device) -> int:
    """Most bytes that were in use beyond `before`."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) - before
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * KIBI - before


def trainer_of(way: str, model: Any, batch: dict[str, torch.Tensor], args: argparse.Namespace, folder: str) -> Trainer:
    """The Trainer of a way of learning; every step has the same batch."""
    steps = args.steps + WARM_UP
    arguments = TrainingArguments(
        output_dir=folder,
        max_steps=steps,
        per_device_train_batch_size=args.batch,
        gradient_checkpointing=args.gradient_checkpointing,
        use_cpu=model.device.type == "cpu",
        save_strategy="no",
        logging_steps=steps,
        report_to="none",
        disable_tqdm=True,
        remove_unused_columns=False,
    )
    given: dict[str, Any] = {
        "model": model,
        "args": arguments,
        "train_dataset": list(range(steps * args.batch)),
        "data_collator": lambda _: dict(batch),
    }
    config = dart.DartConfig(keep=args.keep)
    if way == "plain":
        return PlainTrainer(**given)
    if way == "dart":
        return PlainTrainer(**given, pruning=DartCallback(config))
    return DistillingTrainer(**given, epic=way, config=config)


def train(way: str, args: argparse.Namespace) -> dict[str, Any]:
    """One run in this process: {"seconds": of each step, "peak": bytes, "tokens", "visual_tokens"}."""
    device = device_of(args.device)
    shape = SHAPES[args.model]
    model = build(shape, device, getattr(torch, args.dtype), args.attn)
    tower = "vision_tower" if hasattr(model.model, "vision_tower") else "visual"
    model.model.get_submodule(tower).requires_grad_(False)
    work = workload(shape, model, args.batch)
    labels = work.inputs["input_ids"].clone()
    labels[:, :-ANSWER_TOKENS] = IGNORED
    clock = Clock(device)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(way, model, {**work.inputs, "labels": labels}, args, folder)
        trainer.add_callback(clock)
        trainer.remove_callback(PrinterCallback)
        before = memory_now(device)
        trainer.train()
    return {
        "seconds": clock.seconds[WARM_UP:],
        "peak": peak_since(before, device),
        "tokens": work.length,
        "visual_tokens": work.visual_tokens,
    }


def _work(way: str, args: argparse.Namespace, pipe: Any) -> None:
    torch.set_num_threads(args.threads)
    pipe.send(train(way, args))


def alone(way: str, args: argparse.Namespace) -> dict[str, Any]:
    """`train` in a process of its own. Raises UserError when it dies."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(way, args, theirs))
    process.start()
    theirs.close()
    try:
        return ours.recv()
    except EOFError as error:
        process.join()
        raise UserError(
            f"{way}: the process ended with code {process.exitcode}, maybe for lack of memory: choose a smaller --model"
        ) from error
    finally:
        process.join()


def parser_() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="decoder-135m", help="its shape (decoder-135m)")
    parser.add_argument("--keep", type=budget, default=320, help="visual tokens that stay with `dart` (320)")
    parser.add_argument("--batch", type=positive, default=1)
    parser.add_argument("--steps", type=positive, default=10, help="counted steps of a run (10)")
    parser.add_argument("--repeats", type=positive, default=3, help="rounds (3)")
    parser.add_argument("--gradient-checkpointing", action="store_true")
    parser.add_argument("--dtype", choices=DTYPES, default="float32")
    parser.add_argument("--attn", default="sdpa", choices=("sdpa", "eager", "flash_attention_2"))
    parser.add_argument("--device", help="default: CUDA where there is one")
    parser.add_argument("--out", help="a JSON file")
    return parser


def run(args: argparse.Namespace) -> dict[str, Any]:
    device_of(args.device)
    args.threads = torch.get_num_threads()
    samples: dict[str, list[dict[str, Any]]] = {way: [] for way in WAYS}
    with tqdm(total=args.repeats * len(WAYS), desc="trainings") as bar:
        for round_ in range(args.repeats):
            for way in WAYS if round_ % 2 == 0 else reversed(WAYS):
                bar.set_postfix_str(way)
                samples[way].append(alone(way, args))
                bar.update()
    base = [statistics.mean(each["seconds"]) for each in samples["plain"]]
    rows = []
    for way, runs in samples.items():
        means = [statistics.mean(each["seconds"]) for each in runs]
        rows.append(
            {
                "way": way,
                "step_s": summary(means, 3),
                "times_faster": summary([b / m for b, m in zip(base, means, strict=True)], 2),
                "peak_mb": summary([each["peak"] / MEGA for each in runs], 0),
            }
        )
    facts = {name: getattr(args, name) for name in ("model", "keep", "batch", "steps", "repeats", "dtype", "attn")}
    sizes = {name: samples["plain"][0][name] for name in ("tokens", "visual_tokens")}
    note = SHAPES[args.model].note
    return {**provenance(), **facts, **sizes, "checkpointing": args.gradient_checkpointing, "note": note, "rows": rows}


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    args = parser_().parse_args(argv)
    result = run(args)
    print_table(
        [{key: value if key == "way" else value["median"] for key, value in row.items()} for row in result["rows"]]
    )
    publish(result, args.out)


if __name__ == "__main__":
    main()
