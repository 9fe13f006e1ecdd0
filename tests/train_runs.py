"""Runs of `llava.train.train` that share one start: `python tests/train_runs.py JOBS` imports once and forks every run.

JOBS: a JSON file, a list of {"words": flags, "log": file, "ranks": 1, "moment": None}, run one after the other; a
moment names where the run is killed (MOMENTS). Prints how each rank of each run ended: exit codes, or minus the signal.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIMIT_SECONDS = 300


def results_of(jobs: list[dict[str, Any]], folder: Path) -> list[list[int]]:
    """Of each job the codes of its ranks, from a driver of its own."""
    file = folder / "jobs.json"
    file.write_text(json.dumps(jobs))
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    ran = subprocess.run([sys.executable, __file__, str(file)], env=env, stdout=subprocess.PIPE, timeout=LIMIT_SECONDS)
    assert ran.returncode == 0
    return json.loads(ran.stdout)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_in_half(file: str | Path) -> None:
    """As a kill in the middle of its writing leaves it."""
    os.truncate(file, os.path.getsize(file) // 2)
    die()


def _patch(owner: Any, name: str, made: Any) -> None:
    """Replace `owner.name` by what `made` makes of it."""
    setattr(owner, name, made(getattr(owner, name)))


def before_the_first_step() -> None:
    from transformers import Trainer

    _patch(Trainer, "training_step", lambda plain: lambda *given, **more: die())


def in_a_step() -> None:
    from transformers import Trainer

    def made(plain: Any) -> Any:
        def step(self: Any, *given: Any, **more: Any) -> Any:
            loss = plain(self, *given, **more)
            return die() if self.state.global_step == 3 else loss

        return step

    _patch(Trainer, "training_step", made)


def in_a_checkpoint() -> None:
    from transformers import Trainer

    def made(plain: Any) -> Any:
        def save(self: Any, folder: str) -> None:
            plain(self, folder)
            if self.state.global_step == 4:
                die_in_half(Path(folder, "optimizer.pt"))

        return save

    _patch(Trainer, "_save_optimizer_and_scheduler", made)


def in_a_state_file() -> None:
    from transformers import TrainerState

    def made(plain: Any) -> Any:
        def save(self: Any, file: str) -> None:
            plain(self, file)
            if "checkpoint-4" in file:
                die_in_half(file)

        return save

    _patch(TrainerState, "save_to_json", made)


def in_a_removal() -> None:
    import shutil

    def remove(folder: str, **_: Any) -> None:
        Path(folder, "model.safetensors").unlink()
        die()

    _patch(shutil, "rmtree", lambda plain: lambda f, **m: remove(f) if "checkpoint-2" in str(f) else plain(f, **m))


def in_the_final_model() -> None:
    from llava.train.trainer import LlavaTrainer

    def made(plain: Any) -> Any:
        def save(self: Any, folder: str | None = None, state: Any = None) -> None:
            plain(self, folder, state)
            if "checkpoint-" not in str(folder):
                die_in_half(Path(self.args.output_dir, "model.safetensors"))

        return save

    _patch(LlavaTrainer, "_save", made)


def with_a_late_rank() -> None:
    """Rank 1 is slow to save its generators, and rank 0 dies as soon as its last file is written."""
    from transformers import Trainer, TrainerState

    if os.environ["RANK"] == "1":
        _patch(Trainer, "_save_rng_state", lambda plain: lambda *given: (time.sleep(1.5), plain(*given)))
    else:
        _patch(TrainerState, "save_to_json", lambda plain: lambda *given: (plain(*given), die()))


MOMENTS = {
    each.__name__: each
    for each in (
        before_the_first_step,
        in_a_step,
        in_a_checkpoint,
        in_a_state_file,
        in_a_removal,
        in_the_final_model,
        with_a_late_rank,
    )
}


def _run(job: dict[str, Any], rank: int, port: int) -> None:
    """One rank, in a process that was forked for it."""
    ranks = job.get("ranks", 1)
    if ranks > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    with open(job["log"], "a") as log:
        os.dup2(log.fileno(), sys.stdout.fileno())
        os.dup2(log.fileno(), sys.stderr.fileno())
    if job.get("moment"):
        MOMENTS[job["moment"]]()
    from llava.train import train

    train.main(job["words"])


def _forked(job: dict[str, Any], rank: int, port: int) -> int:
    """The process id of a rank."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        _run(job, rank, port)
        code = 0
    except SystemExit as stop:
        code = int(stop.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _codes(job: dict[str, Any]) -> list[int]:
    """The ranks' codes; once one has failed, the others, which wait for it, are killed."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    ranks = [_forked(job, rank, port) for rank in range(job.get("ranks", 1))]
    codes: dict[int, int] = {}
    while len(codes) < len(ranks):
        process, status = os.wait()
        codes[process] = os.waitstatus_to_exitcode(status)
        if codes[process]:
            for other in set(ranks) - set(codes):
                os.kill(other, signal.SIGKILL)
    return [codes[process] for process in ranks]


if __name__ == "__main__":
    from llava.train import train  # noqa: F401  (what every run needs, imported once)

    given = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps([_codes(job) for job in given]))
