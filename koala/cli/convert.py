"""convert: one .safetensors file -> a folder in diffusers' layout, and back."""

import argparse
import dataclasses
from pathlib import Path

from koala.cli.options import fetch_missing
from koala.cli.output import emit
from koala.console import no_bars

HELP = "one .safetensors file to a folder in diffusers' layout, or a model to one file"


def add(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "model", metavar="MODEL", help="one .safetensors file; or a model name, hub id or folder to write as one file"
    )
    parser.add_argument(
        "--out",
        type=Path,
        required=True,
        metavar="PLACE",
        help="a new folder; or FILE.safetensors, which ComfyUI and other programs read",
    )
    parser.add_argument(
        "--teacher",
        metavar="MODEL",
        help="the model that provides tokenizers and settings, and a missing text encoder or VAE (default: one found "
        "on this machine)",
    )


def run(args: argparse.Namespace) -> int:
    """Prints the report of what was written, or JSON; exit status 0."""
    from koala.convert.to_folder import unpack
    from koala.convert.to_single_file import write_single_file
    from koala.files.outputs import check_file, check_new_folder

    no_bars()
    if args.out.suffix.lower() == ".safetensors":
        check_file(args.out)
        fetch_missing([args.model])
        report = write_single_file(args.model, args.out)
    else:
        check_new_folder(args.out)
        fetch_missing([args.teacher] if args.teacher else [])
        report = unpack(Path(args.model), args.out, teacher=args.teacher)
    emit(args, dataclasses.asdict(report), "\n".join(report.lines()))
    return 0
