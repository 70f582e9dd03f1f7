"""Options that several verbs share, derived from the request's own fields."""

import argparse
import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from koala.cli.output import fetching
from koala.errors import UserError
from koala.models.cards import CARDS
from koala.models.export_manifest import find_export
from koala.models.registry import find
from koala.request import GenerationRequest

if TYPE_CHECKING:
    from koala.models.library import Library

DTYPES = ("float32", "bfloat16", "float16")
RUNTIMES = ("torch", "onnx")


def number(text: str) -> int | float | str:
    """The number in a text; other text is returned as it is, and the request's own check names the remedy."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def add_request(
    parser: argparse.ArgumentParser, *, leave_out: Sequence[str] = (), one_each: Sequence[str] = ()
) -> None:
    """One option for every field of a request; options not given are absent, so that the model's defaults apply.

    The fields of `one_each` take one value for all models, or one for each.
    """
    for field in dataclasses.fields(GenerationRequest):
        if field.name in leave_out:
            continue
        required = field.default is dataclasses.MISSING
        text = "str" in str(field.type)
        default = ("none" if field.name == "lora" else "the model's own") if field.default is None else field.default
        parser.add_argument(
            f"--{field.name.replace('_', '-')}",
            type=str if text else number,
            required=required,
            default=argparse.SUPPRESS,
            metavar="TEXT" if text else "N",
            help=field.metadata["help"]
            + ("; one for all models, or one for each" if field.name in one_each else "")
            + ("" if required or default == "" else f" (default: {default})"),
            **({"nargs": "+"} if field.name in one_each else {}),
        )


def add_device(parser: argparse.ArgumentParser) -> None:
    """Device, precision and memory."""
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 or mps (default: the best one here)")
    parser.add_argument(
        "--vram",
        type=gigabytes,
        metavar="GB",
        help="memory to plan for, such as 8, 6, 4 or 3 (default: all that is free)",
    )
    parser.add_argument("--dtype", choices=DTYPES, help="precision (default: float16 on a GPU, else what fits)")


def add_runtime(parser: argparse.ArgumentParser) -> None:
    """The runtime."""
    parser.add_argument(
        "--runtime",
        choices=RUNTIMES,
        default="torch",
        help="onnx: the newest export of each model, from exports/ or $KOALA_EXPORTS, on ONNX Runtime; a folder that "
        "was exported runs there anyway (default: torch)",
    )


def to_run(args: argparse.Namespace, names: Sequence[str]) -> list[str]:
    """The models to run: with --runtime onnx their exports. UserError for options that would have no effect."""
    models = [str(find_export(find(name).name)) for name in names] if args.runtime == "onnx" else list(names)
    if all(find(name).runtime == "onnx" for name in models):
        for option in ("vram", "dtype"):
            if getattr(args, option) is not None:
                raise UserError(
                    f"--{option} applies to torch only: ONNX Runtime plans its own memory, and an export has the "
                    "precision that it was exported in; leave it out"
                )
    return models


def library(args: argparse.Namespace, names: Sequence[str]) -> "Library":
    """The library that `add_device`'s options describe; models that are not on this machine are fetched first."""
    from koala.models.library import Library

    fetch_missing(names)
    return Library(args.device, memory=args.vram, dtype=args.dtype)


def fetch_missing(names: Sequence[str]) -> None:
    """Download the models that this machine lacks; paths that exist are left as they are."""
    from koala.models.downloads import obtain

    for name in names:
        if name in CARDS or not Path(name).exists():
            obtain(find(name), fetching(name))


def gigabytes(text: str) -> int:
    """Bytes from GB (10^9)."""
    try:
        count = float(text)
    except ValueError:
        count = 0
    if not 0.1 <= count <= 1024:
        raise argparse.ArgumentTypeError(f"{text!r} is not a memory size; give gigabytes, such as 8, 6, 4 or 3")
    return int(count * 1e9)


def request_values(args: argparse.Namespace) -> dict:
    """The fields of a request that were given."""
    names = {f.name for f in dataclasses.fields(GenerationRequest)}
    return {n: v for n, v in vars(args).items() if n in names}


def file_ending(suffix: str, why: str) -> Callable[[str], Path]:
    """The parser of an option that takes a file with this ending."""

    def parse(text: str) -> Path:
        path = Path(text)
        if path.suffix.lower() != suffix:
            raise argparse.ArgumentTypeError(f"{text!r} does not end in {suffix}; {why}")
        return path

    return parse
