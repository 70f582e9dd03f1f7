"""bench: measure latency and memory, and compare them with the prediction."""

import argparse
import dataclasses
import json
import sys

from koala.benchmark.matrix import PRESET_NAMES, Matrix
from koala.cli.options import add_device, file_ending, library
from koala.cli.output import emit, say
from koala.console import no_bars
from koala.models.registry import find

HELP = "measure latency and memory over models x sizes x batches x presets, and compare them with the prediction"

SMALLER = "smaller --sizes, a smaller --batch, a smaller model"  # remedies for running out of memory


def add(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "--models", nargs="+", required=True, metavar="MODEL", help="the first is the baseline of the speed-ups"
    )
    parser.add_argument(
        "--sizes", nargs="+", type=int, default=(), metavar="PX", help="picture sides (default: the first model's own)"
    )
    parser.add_argument("--batch", nargs="+", type=int, default=(1,), metavar="N", help="pictures per run (default: 1)")
    parser.add_argument(
        "--presets",
        nargs="+",
        default=("quality",),
        metavar="NAME",
        help=f"of {', '.join(PRESET_NAMES)}; stock is diffusers' own pipeline (default: quality)",
    )
    parser.add_argument("--steps", type=int, metavar="N", help="denoising steps (default: each model's own)")
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="measured runs per cell (default: 3)")
    parser.add_argument(
        "--time-limit", type=float, metavar="S", help="seconds; cells that would end later are left out, and named"
    )
    parser.add_argument(
        "--random-weights", action="store_true", help="build the networks from their specs; no file is needed"
    )
    parser.add_argument(
        "--out",
        type=file_ending(".json", "the table goes next to it as .md"),
        required=True,
        metavar="FILE.json",
        help="the table goes next to it as .md",
    )
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the table, or JSON; exit status 0. Its files keep what was measured even where an error ends it."""
    names = [find(model).name for model in args.models]
    values = {f.name: getattr(args, f.name) for f in dataclasses.fields(Matrix)}
    matrix = Matrix(**{n: tuple(v) if isinstance(v, list) else v for n, v in values.items()} | {"models": tuple(names)})
    from koala.benchmark.measure import measure
    from koala.benchmark.report import markdown, report
    from koala.evaluate.reports import circumstances
    from koala.files.outputs import check_file, new_file
    from koala.models.measured import RANDOM
    from koala.models.random_weights import random_library

    no_bars()
    check_file(args.out)
    if args.random_weights:
        models = random_library(args.device, memory=args.vram, dtype=args.dtype)
    else:
        models = library(args, names)
    cells, table = [], {}
    try:
        for cell in measure(matrix, models, on_run=say):
            cells.append(cell)
    finally:  # what was measured is kept, whatever ended it
        if cells:
            table = report(matrix, cells, random_weights=args.random_weights)
            table |= circumstances(sys.argv[1:], models.device, weights=RANDOM if args.random_weights else names)
            texts = {args.out: json.dumps(table, indent=1), args.out.with_suffix(".md"): markdown(table)}
            for file, text in texts.items():
                with new_file(file) as partial:
                    partial.write_text(text + "\n")
    emit(args, table, markdown(table))
    return 0
