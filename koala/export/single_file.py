"""koala export single-file: another name for `python -m koala convert MODEL --out FILE.safetensors`."""

import argparse
import dataclasses
import json
from pathlib import Path

from koala.convert.to_single_file import write_single_file

HELP = "write a model as one .safetensors file for ComfyUI and other programs; the same as python -m koala convert"


def add(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    parser.add_argument("--model", required=True, metavar="MODEL", help="model name, fetched hub id, folder or file")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.safetensors", help="the file to write")


def run(args: argparse.Namespace) -> int:
    """Prints the report of the file that was written, or JSON; exit status 0."""
    report = write_single_file(args.model, args.out)
    print(json.dumps(dataclasses.asdict(report), indent=1) if args.json else "\n".join(report.lines()))
    return 0
