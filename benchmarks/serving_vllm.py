"""vLLM's own benchmark client at its server with the plugin: `.venv-vllm/bin/python -m benchmarks.serving_vllm`.

What `vllm bench serve` does with a file of questions about images, once for every setting and number of clients; it
knows how long requests took and which failed, not whether an answer is right: `benchmarks.serving` does. vLLM for CPUs
has no `vllm` command, so its client is called here. JSON last line.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.arguments import list_of, positive
from benchmarks.output import print_table, publish
from benchmarks.serving import DIFFERENT, QUESTIONS, ROOT, extra_of, settings
from dart.utils import Parser, UserError, exits_cleanly, needed, provenance
from llava.eval.engine.examples import read_question_file

MILLI = 1000.0


def write_questions(file: Path) -> None:
    """The questions of `benchmarks.serving`, a JSON line each, as vLLM's data set "custom_image" has them."""
    examples = read_question_file(QUESTIONS / "llava_textvqa_val_v051_ocr.jsonl", QUESTIONS / "train_images")
    lines = [json.dumps({"prompt": each.text, "image_files": [str(each.image)]}) for each in examples[:DIFFERENT]]
    file.write_text("\n".join(lines) + "\n")


def words(args: argparse.Namespace, questions: Path, setting: Any, clients: int) -> list[str]:
    """The client's command line."""
    values = {
        "backend": "openai-chat",
        "endpoint": "/v1/chat/completions",
        "base-url": args.url,
        "model": args.model,
        "served-model-name": args.served or Path(args.model).name,
        "dataset-name": "custom_image",
        "dataset-path": questions,
        "num-prompts": args.requests,
        "custom-output-len": args.tokens,
        "max-concurrency": clients,
        "temperature": 0,
        "extra-body": json.dumps(extra_of("mm_processor_kwargs", setting)),
        "percentile-metrics": "ttft,e2el",
        "metric-percentiles": 95,
    }
    # Otherwise the server is asked to read files, which it refuses.
    flags = ["--custom-ensure-client-side-data", "--disable-tqdm"]
    return [str(word) for name, value in values.items() for word in (f"--{name}", value)] + flags


def row_of(result: dict[str, Any]) -> dict[str, Any]:
    """What of the client's result goes into a table."""
    row = {"requests": result["completed"] + result["failed"], "lost": result["failed"]}
    row["requests_per_s"] = round(result["request_throughput"], 3)
    for name, theirs in (("first", "ttft"), ("total", "e2el")):
        row[f"{name}_median_s"] = round(result[f"median_{theirs}_ms"] / MILLI, 4)
        row[f"{name}_p95_s"] = round(result[f"p95_{theirs}_ms"] / MILLI, 4)
    return row


def run(args: argparse.Namespace) -> list[dict[str, Any]]:
    """Raises UserError without vLLM, when the client gives up, and when every request fails."""
    client = needed("vllm.benchmarks.serve", "vllm")
    parser = needed("vllm.utils.argparse_utils", "vllm").FlexibleArgumentParser()
    client.add_cli_args(parser)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        questions = Path(folder) / "questions.jsonl"
        write_questions(questions)
        for clients in args.clients:
            for name, setting in args.settings.items():
                try:
                    result = client.main(parser.parse_args(words(args, questions, setting, clients)))
                except (ValueError, OSError) as error:
                    raise UserError(f"vLLM's client, {args.url}, setting {name}: {error}") from error
                if not result["completed"]:
                    raise UserError(f"vLLM's client, {args.url}, setting {name}: every request failed")
                rows.append({"setting": name, "clients": clients, **row_of(result)})
    print_table(rows)
    return rows


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="of the server, without /v1")
    parser.add_argument(
        "--model", default=str(ROOT / "playground" / "models" / "qwen2_5-vl-tiny"), help="for its tokenizer"
    )
    parser.add_argument("--served", help="the name that the server gives its model (default: the last part of --model)")
    parser.add_argument(
        "--settings", type=settings, default={"unpruned": False, "0.222": {"keep": 0.222}}, help="of a request's `dart`"
    )
    parser.add_argument("--clients", type=list_of(positive), default=[1, 8, 32])
    parser.add_argument("--requests", type=positive, default=500, help="for each setting and number of clients")
    parser.add_argument("--tokens", type=positive, default=8, help="of an answer, at most")
    parser.add_argument("--note", default="", help="about the server: its command")
    parser.add_argument("--out", help="such as docs/results/client-vllm-cpu.json")
    args = parser.parse_args(argv)
    rows = run(args)
    model = args.served or Path(args.model).name
    publish({**provenance(), "server": args.note, "model": model, "rows": rows}, args.out)


if __name__ == "__main__":
    main()
