"""Answer and score OCRBench: `python -m llava.eval.model_vqa_ocrbench --model_path ... --OCRBench_file OCRBench.json`.

Writes <output_folder>/<save_name>.json, the official result file, and <save_name>.jsonl, from which a run resumes.
Flags of the loop (--device, --sparse, --batch-size, ...) pass through.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from dart.utils import Parser, exits_cleanly, write_json
from llava.eval.engine.answers import all_lines
from llava.eval.engine.figures import emit, parts_of
from llava.eval.engine.loop import add_loop_arguments, run
from llava.eval.tasks.ocrbench import FIELDS, figures_of, judged, read_entries, read_questions
from llava.files import official_form


@exits_cleanly
def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False)
    parser.add_argument("--model_path", "--model-path", required=True)
    parser.add_argument("--image_folder", "--image-folder", required=True)
    parser.add_argument("--OCRBench_file", required=True)
    parser.add_argument("--output_folder", default="./results")
    parser.add_argument("--save_name", default="ocrbench")
    parser.add_argument("--conv_mode", "--conv-mode", default="vicuna_v1")
    parser.add_argument(
        "--num_workers", help="accepted and ignored: see scripts/v1_5/eval/ocrbench.sh for several GPUs"
    )
    own, rest = parser.parse_known_args(argv)
    folder = Path(own.output_folder)
    answers = folder / f"{own.save_name}.jsonl"
    loop = Parser(prog="model_vqa_ocrbench: flags of the loop", allow_abbrev=False)
    add_loop_arguments(loop, files=False)
    flags = ["--model-path", own.model_path, "--conv-mode", own.conv_mode, "--answers-file", str(answers)]
    args = loop.parse_args([*flags, *rest])
    args.question_file = own.OCRBench_file
    with official_form(own.OCRBench_file):
        examples = read_questions(Path(own.OCRBench_file), Path(own.image_folder))
    outcome = run(args, examples=examples)
    if outcome.complete and args.num_chunks == 1:
        rows = judged(read_entries(Path(own.OCRBench_file), FIELDS), all_lines(answers))
        write_json(folder / f"{own.save_name}.json", rows)
        figures = figures_of(rows)
        emit(figures, parts_of(figures), None)


if __name__ == "__main__":
    main()
