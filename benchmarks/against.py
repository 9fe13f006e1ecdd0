"""This checkout beside another one, in turns: `python -m benchmarks.against OTHER_CHECKOUT`; JSON in the last line.

Both are asked the same through what they have in public: `dart.prune` on a model of a shape with random weights,
`dart.select` on random states, `import dart` and `python -m dart --help`. Every round runs each of them once in a fresh
process, forwards and backwards by turns; a figure is the median of a process, a ratio the median of the rounds' ratios
(new / old: below 1 is faster).
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

from benchmarks.arguments import positive
from benchmarks.output import print_table, publish
from benchmarks.probe import median_ms
from dart.utils import Parser, UserError, exits_cleanly, provenance

HERE = Path(__file__).resolve().parents[1]
CASES = ("135m-float32-2880", "llava-1.5-7b-bfloat16-576", "select-620", "select-2900", "import", "help")


def ask(checkout: Path, case: str, repeats: int) -> float:
    """Milliseconds of one case in a process of its own, which imports `dart` from that checkout."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(checkout), os.environ.get("PYTHONPATH", "")])}
    if case in ("import", "help"):
        command = [sys.executable, *(["-c", "import dart"] if case == "import" else ["-m", "dart", "--help"])]
        call = lambda: subprocess.run(command, cwd=checkout, env=environment, check=True, capture_output=True)  # noqa: E731
        return median_ms(call, repeats)
    code = "import sys; sys.path.append(sys.argv[1]); from benchmarks.probe import measure; "
    code += "print(measure(sys.argv[2], int(sys.argv[3])))"
    command = [sys.executable, "-c", code, str(HERE), case, str(repeats)]
    done = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(f"{checkout} cannot run {case}: {done.stderr.strip().splitlines()[-1]}")
    return float(done.stdout.split()[-1])


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the folder of the other checkout")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--repeats", type=positive, default=3, help="in a process")
    parser.add_argument("--cases", default=",".join(CASES))
    parser.add_argument("--out")
    args = parser.parse_args(argv)
    if not (args.other / "dart" / "__init__.py").is_file():
        raise UserError(f"{args.other} is no checkout of this project: expected a folder with dart/__init__.py")
    if unknown := set(args.cases.split(",")) - set(CASES):
        raise UserError(f"--cases: unknown {', '.join(sorted(unknown))}; known: {', '.join(CASES)}")
    commit = subprocess.run(
        ["git", "-C", str(args.other), "rev-parse", "--short", "HEAD"], capture_output=True, text=True
    )
    rows = []
    for case in args.cases.split(","):
        old, new = [], []
        for number in range(args.rounds):
            for checkout, times in ((args.other, old), (HERE, new))[:: 1 if number % 2 == 0 else -1]:
                times.append(ask(checkout.resolve(), case, args.repeats))
        ratios = sorted(n / o for n, o in zip(new, old, strict=True))
        rows.append(
            {
                "case": case,
                "old_ms": round(statistics.median(old), 2),
                "new_ms": round(statistics.median(new), 2),
                "ratio": round(statistics.median(ratios), 3),
                "ratios": f"{ratios[0]:.3f}..{ratios[-1]:.3f}",
            }
        )
        print_table(rows[-1:], 28)
    publish({**provenance(), "other_commit": commit.stdout.strip(), "rows": rows}, args.out)


if __name__ == "__main__":
    main()
