"""lora: move a LoRA of a teacher onto a student."""

import argparse
import dataclasses
from pathlib import Path

from koala.cli.options import file_ending
from koala.cli.output import emit
from koala.unet.original_layout import LORA_NAMES
from koala.unet.specs import SPECS

HELP = "move an SDXL LoRA onto a KOALA"


def add(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "--lora",
        type=Path,
        required=True,
        metavar="FILE.safetensors",
        help="a LoRA of the teacher's U-Net, in any format",
    )
    parser.add_argument(
        "--spec", required=True, metavar="SPEC", help="the student: koala-700m, koala-1b, or transformer depths"
    )
    parser.add_argument(
        "--out",
        type=file_ending(".safetensors", "the only format for LoRAs here"),
        required=True,
        metavar="FILE.safetensors",
        help="where the student's LoRA goes",
    )
    parser.add_argument(
        "--teacher-spec",
        choices=SPECS,
        metavar="NAME",
        help=f"what the LoRA was trained on: {', '.join(SPECS)} (default: recognised by its shapes)",
    )
    parser.add_argument(
        "--names",
        choices=LORA_NAMES,
        default="kohya",
        help="naming of the new file's tensors: ComfyUI, Forge and diffusers read kohya's, only diffusers reads peft's "
        "(default: kohya)",
    )


def run(args: argparse.Namespace) -> int:
    """Prints what was moved and the new file, or JSON; exit status 0."""
    from koala.files.outputs import check_file
    from koala.lora.moving import remap_file

    check_file(args.out)
    report = remap_file(args.lora, args.spec, args.out, SPECS.get(args.teacher_spec), args.names)
    emit(args, dataclasses.asdict(report) | {"out": str(args.out)}, "\n".join([*report.lines(), str(args.out)]))
    return 0
