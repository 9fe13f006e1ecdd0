"""Summarise reviews: `python -m llava.eval.summarize_gpt_review -f reviews/llava-v1.5-7b.jsonl` (or -d FOLDER)."""

from __future__ import annotations

from pathlib import Path

from dart.utils import Parser, UserError, exits_cleanly
from llava.eval.engine.answers import read_lines
from llava.eval.tasks.llavabench import summary_of
from llava.files import names_its_files

PREFIXES = ("gpt4_text", "reviews_", "review_")


@exits_cleanly
@names_its_files
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__)
    parser.add_argument("-d", "--dir", help=f"folder; without -f its files {', '.join(PREFIXES)}*.jsonl")
    parser.add_argument("-f", "--files", nargs="*", default=[])
    parser.add_argument("-i", "--ignore", nargs="*", default=[], help="question ids to leave out")
    args = parser.parse_args(argv)
    folder = Path(args.dir or ".")
    if not args.files and not folder.is_dir():
        raise UserError(f"folder {folder} does not exist; name review files with -f or their folder with -d")
    names = args.files or [path.name for path in folder.glob("*.jsonl") if path.name.startswith(PREFIXES)]
    if not names:
        raise UserError(f"{folder} has no file {', '.join(PREFIXES)}*.jsonl; name review files with -f")
    for name in sorted(names):
        reviews = [row for row in read_lines(folder / name) if str(row["question_id"]) not in args.ignore]
        if not reviews:
            raise UserError(f"{folder / name} has no review to summarise")
        print(Path(name).name.replace("gpt4_text_", "").removesuffix(".jsonl"))
        for part, figures in summary_of(reviews).items():
            print(part, figures["relative"])
        print("=" * 33)


if __name__ == "__main__":
    main()
