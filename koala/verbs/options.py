"""Options that several verbs share, derived from the request's own fields."""

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from koala.request import GenerationRequest


def number(text: str) -> int | float | str:
    """The number that a text spells; text that spells none is kept, and the request's own check names the remedy."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def add_request(parser: argparse.ArgumentParser, *, leave_out: Sequence[str] = ()) -> None:
    for field in dataclasses.fields(GenerationRequest):
        if field.name in leave_out:
            continue
        required = field.default is dataclasses.MISSING
        text = "str" in str(field.type)
        default = "the model's own" if field.default is None else field.default
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=str if text else number,
            required=required,
            default=argparse.SUPPRESS,
            metavar="TEXT" if text else "N",
            help=field.metadata["help"] + ("" if required or default == "" else f" (default: {default})"),
        )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 or mps (default: the best one here)")


def request_values(args: argparse.Namespace) -> dict:
    names = {f.name for f in dataclasses.fields(GenerationRequest)}
    return {n: v for n, v in vars(args).items() if n in names}


def png(text: str) -> Path:
    path = Path(text)
    if path.suffix.lower() != ".png":
        raise argparse.ArgumentTypeError(f"{text!r} does not end in .png; pictures are PNG files")
    return path
