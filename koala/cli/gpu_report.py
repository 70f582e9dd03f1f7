"""gpu-report: what this machine's card can do, in one file to keep or to send in."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from koala.cli.options import file_ending
from koala.cli.output import emit, say
from koala.console import no_bars, sentence
from koala.gpu_report.budget import DONE, MINUTES
from koala.hardware.torch_build import advice_here

if TYPE_CHECKING:
    from koala.gpu_report.exports import Exports

HELP = "measure this machine's NVIDIA card in nine minutes, without any model's files: one JSON to keep or to send in"

LEAST, MOST = 2, 120  # minutes
SMALLER = "a card with more free memory"  # remedies for running out of memory


def add(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "--out",
        type=file_ending(".json", "the tables go next to it as .md"),
        required=True,
        metavar="FILE.json",
        help="rewritten after each section; the tables go next to it as .md",
    )
    parser.add_argument("--device", metavar="NAME", help="cuda:1 for the second card (default: the first)")
    parser.add_argument(
        "--minutes",
        type=_minutes,
        default=MINUTES,
        metavar="N",
        help=f"how long it may take, from {LEAST} to {MOST}; a slow card needs longer (default: {MINUTES:g})",
    )


def _minutes(text: str) -> float:
    try:
        count = float(text)
    except ValueError:
        count = 0.0
    if not LEAST <= count <= MOST:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes from {LEAST} to {MOST}; 9 is usual")
    return count


def run(args: argparse.Namespace) -> int:
    """Prints the tables, or JSON; exit status 0 where any section was measured, 1 where none was, 2 without a card."""
    from koala.errors import UserError
    from koala.files.outputs import check_file
    from koala.hardware.device import best_device

    device = best_device(args.device)
    if device.type != "cuda":
        advice = advice_here() or "no CUDA GPU is visible to torch; `python -m koala bench` measures any device"
        raise UserError(f"gpu-report measures an NVIDIA card, and none can be used: {advice}")
    check_file(args.out)
    from koala.gpu_report.report import run as measure
    from koala.gpu_report.scale import FULL
    from koala.gpu_report.tables import markdown

    no_bars()
    asked = ["gpu-report", *(["--device", args.device] if args.device else []), "--out", args.out.name]
    asked += ["--minutes", f"{args.minutes:g}"] if args.minutes != MINUTES else []
    report = measure(
        FULL,
        device,
        args.out,
        exports=_exports,
        say=say,
        explain=sentence,
        arguments=asked,
        minutes=args.minutes,
    )
    emit(args, report, markdown(report))
    if not any(section["status"] == DONE for section in report["sections"].values()):
        say(f"nothing could be measured; {args.out} has the reasons")
        return 1
    say(f"{args.out} is the report: docs/benchmarks.md says where to send it")
    return 0


def _exports(folder: Path) -> "Exports":
    """The export's own functions, for the report."""
    from koala.export.network import RTX, build_engine, write_unet
    from koala.gpu_report.exports import Exports

    return Exports(folder=folder, write=write_unet, build=build_engine, builds=lambda: RTX.ready)
