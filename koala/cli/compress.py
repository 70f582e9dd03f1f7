"""compress: cut a student U-Net out of a teacher."""

import argparse
import dataclasses
from pathlib import Path

from koala.cli.options import fetch_missing
from koala.cli.output import emit
from koala.console import no_bars

HELP = "cut an untrained KOALA out of a teacher"


def add(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "--teacher",
        required=True,
        metavar="MODEL",
        help="model name, hub id, folder of a pipeline or of a U-Net, or one .safetensors file",
    )
    parser.add_argument(
        "--spec",
        required=True,
        metavar="SPEC",
        help="koala-700m, koala-1b, bk-sdxl, ..., or transformer depths as DW-1,DW-2,DW-3/MID/UP-1,UP-2,UP-3: "
        "0,2,5/-/5+5,2+2,0+0 is koala-700m",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for the student")


def run(args: argparse.Namespace) -> int:
    """Prints what was kept of the teacher and the new folder, or JSON; exit status 0."""
    from koala.compress.surgery import compress
    from koala.files.outputs import check_new_folder

    no_bars()
    check_new_folder(args.out)
    fetch_missing([args.teacher])
    report = compress(args.teacher, args.spec, args.out)
    what = "a pipeline" if report.pipeline else "a U-Net"
    text = "\n".join([*report.lines(), f"{args.out} is {what} for diffusers; surgery.json in it says what was kept"])
    emit(args, dataclasses.asdict(report) | {"out": str(args.out)}, text)
    return 0
