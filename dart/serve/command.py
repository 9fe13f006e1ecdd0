"""Serve a vision-language model, pruned, as an OpenAI-compatible chat endpoint: see docs/serving.md."""

from __future__ import annotations

import argparse
import contextlib
import os
import socket
from pathlib import Path

from dart.cli import ATTENTION, DTYPES, LAST_PORT, budget, count
from dart.config import DartConfig
from dart.utils import Parser, UserError, add_revision, checkpoint_folder, exits_cleanly, needed, one_line


def parser() -> argparse.ArgumentParser:
    """The command line of `python -m dart serve`."""
    out = Parser(prog="python -m dart serve", description=__doc__)
    out.add_argument("--model", required=True, help="checkpoint folder or hub name of any supported family")
    add_revision(out)
    out.add_argument("--name", help="the model's name for clients (default: the last part of --model)")
    out.add_argument("--keep", type=budget, default=128, help="visual tokens to keep: 128, or a share such as 0.222")
    out.add_argument("--layer", type=count(0), default=2, help="drop tokens before this decoder layer (2)")
    out.add_argument("--strategy", default="dart", help="how to choose them (dart); a wrong name lists all")
    out.add_argument("--per-request", action="store_true", help='accept {"dart": {"keep": 64}} in a request')
    out.add_argument("--host", default="127.0.0.1", help="address to serve at (127.0.0.1: this machine alone)")
    out.add_argument("--port", type=count(1, LAST_PORT), default=8000, help="port to serve at (8000)")
    out.add_argument("--api-key-env", metavar="NAME", help="environment variable with the key that clients must send")
    out.add_argument("--allow-image-urls", default="", metavar="HOST[,HOST]", help="fetch images from these hosts")
    out.add_argument("--queue", type=count(0), default=16, help="requests that may wait (16)")
    out.add_argument("--max-tokens", type=count(1), default=1024, help="of an answer (1024)")
    out.add_argument("--max-images", type=count(1), default=8, help="of a request (8)")
    out.add_argument("--max-pixels", type=count(1), default=20_000_000, help="of an image (20000000)")
    out.add_argument("--max-bytes", type=count(1), default=32_000_000, help="of a request, and of a URL's image")
    out.add_argument("--timeout", type=count(1), default=120, help="seconds for a request, waiting included (120)")
    out.add_argument("--grace", type=count(0), default=30, help="seconds that a shutdown waits for requests (30)")
    out.add_argument("--device", help="default: a GPU where there is one, else cpu")
    out.add_argument("--dtype", choices=DTYPES, help="default: float32 on a CPU, else the checkpoint's")
    out.add_argument(
        "--attn-implementation", choices=ATTENTION, help="attention kernel (default: transformers' choice)"
    )
    return out


def bound(host: str, port: int) -> socket.socket:
    """A socket at that address, which does not listen yet. Raises UserError."""
    place = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        place.bind((host, port))
    except OSError as error:
        place.close()
        raise UserError(f"cannot serve at {host}, port {port} ({one_line(error)}): choose --host and --port") from error
    return place


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    """The command `python -m dart serve`. argv: the words after it; None: the process's own."""
    args = parser().parse_args(argv)
    key = os.environ.get(args.api_key_env) if args.api_key_env else None
    if args.api_key_env and not key:
        raise UserError(f"the environment variable {args.api_key_env} (--api-key-env) is not set or empty")
    config = DartConfig(keep=args.keep, layer=args.layer, strategy=args.strategy)
    needed("fastapi", "serve")
    uvicorn = needed("uvicorn", "serve")
    from dart import strategies

    strategies.in_model(config.strategy)
    place = bound(args.host, args.port)
    from dart.cli.loading import load
    from dart.serve.app import Limits, build_app
    from dart.serve.chat import ChatLimits
    from dart.serve.engine import Engine
    from dart.serve.images import ImageLimits
    from dart.serve.metrics import Metrics

    name = args.name or Path(args.model).name
    hosts = frozenset(host.strip().lower() for host in args.allow_image_urls.split(",") if host.strip())
    limits = Limits(
        ChatLimits(name, config, args.max_tokens, args.max_images, args.per_request),
        ImageLimits(hosts, args.max_pixels, args.max_bytes),
        args.max_bytes,
        args.timeout,
    )
    loaded = load(checkpoint_folder(args.model, args.revision), args.device, args.dtype, args.attn_implementation)
    try:
        engine = Engine(loaded, config, args.queue, Metrics())
    except TypeError as error:  # a family that DART does not know
        raise UserError(one_line(error)) from error
    app = build_app(engine, limits, key)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=args.grace))
    print(f"{name} at http://{args.host}:{args.port}/v1", flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # the server has ended by then, as it was asked to
        server.run(sockets=[place])
