"""The export's command line: JSON on stdout, progress on stderr. Exit status: 0 done, 1 failed, 2 bad use."""

import argparse
import dataclasses
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from koala.console import DEBUG, add_debug, finish, no_bars, quiet
from koala.errors import UserError
from koala.export.reporting import add_depth, add_progress
from koala.export.targets import DTYPES, TARGETS, WEB, WEB_TEXT
from koala.words import megabytes

HELP = "export a model to ONNX files that other runtimes load unchanged"
SMALLER = "--components unet or a smaller model"  # remedies for running out of memory
# Other commands -> the module that has HELP, add and run; imported when used.
VERBS = {
    "verify": "koala.export.verify",
    "inspect": "koala.export.inspection",
    "tensorrt": "koala.export.to_tensorrt",
    "single-file": "koala.export.single_file",
}


def add(parser: argparse.ArgumentParser) -> None:
    """The options of the export itself."""
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--model", metavar="MODEL", help="model name, fetched hub id, or folder")
    which.add_argument(
        "--models",
        nargs="+",
        metavar="MODEL",
        help=f"for --target {WEB}: the teacher, then students; or exports of them",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for the export")
    parser.add_argument(
        "--target",
        default="universal",
        metavar="NAME",
        help="; ".join(f"{t.name}: {t.text}" for t in TARGETS.values()) + f"; {WEB}: {WEB_TEXT} (default: universal)",
    )
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), help="type of the weights (default: the target's; the VAE is always fp32)"
    )
    parser.add_argument(
        "--components", choices=("all", "unet"), default="all", help="the whole pipeline, or its U-Net (default: all)"
    )
    parser.add_argument("--lora", type=Path, metavar="FILE.safetensors", help="a LoRA to fuse into the U-Net")
    parser.add_argument(
        "--lora-strength", type=float, default=1.0, metavar="N", help="strength of the LoRA (default: 1)"
    )
    parser.add_argument(
        "--runtime",
        type=Path,
        metavar="FILE.tgz",
        help=f"for --target {WEB}: the ONNX Runtime Web package, for machines without a network",
    )
    add_depth(parser)
    add_progress(parser)


def run(args: argparse.Namespace) -> int:
    """Prints what the new folder holds and its size in MB, or JSON; exit status 0."""
    from koala.export.reporting import ProgressReporter

    reporter = ProgressReporter.of(args)
    if args.target == WEB:
        from koala.export.web.command import publish

        return publish(args, reporter)
    if args.model is None:
        raise UserError(f"--models goes with --target {WEB}; name one model with --model")
    if args.runtime:
        raise UserError(f"--runtime goes with --target {WEB}; leave it out")
    from koala.export.writing import write_export

    job, findings, exported = write_export(args, args.model, args.out, reporter, target=args.target, dtype=args.dtype)
    size = sum(f.stat().st_size for f in args.out.rglob("*") if f.is_file())
    if args.json:
        details = {"findings": findings, "out": str(args.out), "bytes": size, "lora_layers": job.lora_layers}
        print(json.dumps(dataclasses.asdict(exported) | details, indent=1))
    else:
        print(f"{args.out} holds {', '.join(exported.components)}: {megabytes(size)}")
    return 0


def program() -> str:
    """How to call this command: koala export where koala is installed as a command, else python -m koala export."""
    return "koala export" if Path(sys.argv[0]).stem == "koala" else "python -m koala export"


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments of the export, or of the command that comes first among them; `run` is what does it."""
    debug = list(arguments[:1]) == [DEBUG]  # before the command as well as behind it
    arguments = list(arguments[debug:])
    verb = arguments[0] if arguments and arguments[0] in VERBS else None
    module = importlib.import_module(VERBS[verb]) if verb else sys.modules[__name__]
    others = f"Other commands: {', '.join(f'{program()} {name}' for name in VERBS)}."
    parser = argparse.ArgumentParser(
        prog=f"{program()} {verb}" if verb else program(),
        description=module.HELP,
        epilog=None if verb else others,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_debug(parser, debug)
    parser.set_defaults(run=module.run)
    module.add(parser)
    return parser.parse_args(arguments[1:] if verb else arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; its exit status is as the module says."""
    quiet()  # before a verb imports transformers
    given = sys.argv[1:] if arguments is None else arguments
    return finish("export", lambda: _run(given), debug=DEBUG in given)


def _run(arguments: Sequence[str]) -> int:
    args = parse(arguments)
    no_bars()
    from koala.export.reporting import ProgressReporter

    tell = ProgressReporter.of(args).error
    return finish("export", lambda: args.run(args), debug=args.debug, smaller=SMALLER, tell=tell)
