"""The export's command line: JSON on stdout, progress on stderr. Exit status: 0 done, 1 failed, 2 bad use."""

import argparse
import dataclasses
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from export.options import add_depth, add_progress
from export.targets import DTYPES, TARGETS
from koala.console import no_bars, quiet
from koala.last_resort import DEBUG, add_debug, finish

HELP = "write ONNX files of a model that other runtimes load as they are"
SMALLER = "--components unet or a smaller model"  # what helps where memory ran out
# Commands beside the export itself -> the module that has HELP, add and run; imported when asked for.
VERBS = {
    "verify": "export.verify",
    "tensorrt": "export.to_tensorrt",
    "single-file": "export.single_file",
}


def add(parser: argparse.ArgumentParser) -> None:
    """The options of the export itself."""
    parser.add_argument("--model", required=True, metavar="MODEL", help="model name, fetched hub id, or folder")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for the export")
    parser.add_argument(
        "--target",
        default="universal",
        metavar="NAME",
        help="; ".join(f"{t.name}: {t.text}" for t in TARGETS.values()) + " (default: universal)",
    )
    parser.add_argument(
        "--dtype", choices=tuple(DTYPES), help="of the weights (default: the target's; the VAE is always fp32)"
    )
    parser.add_argument(
        "--components", choices=("all", "unet"), default="all", help="the whole pipeline, or its U-Net (default: all)"
    )
    parser.add_argument("--lora", type=Path, metavar="FILE.safetensors", help="a LoRA to fuse into the U-Net")
    parser.add_argument("--lora-strength", type=float, default=1.0, metavar="N", help="how much of it (default: 1)")
    add_depth(parser)
    add_progress(parser)


def run(args: argparse.Namespace) -> int:
    """Prints what the new folder holds and its size in MB, or JSON; exit status 0."""
    from export.folder import Lora, export, plan
    from export.gates.case import Finding
    from export.telling import Teller
    from export.verify import gated

    teller = Teller.of(args)

    lora = Lora(file=args.lora, strength=args.lora_strength) if args.lora else None
    job = plan(args.model, target=args.target, dtype=args.dtype, components=args.components, lora=lora)
    if job.lora:
        teller.lora(job.lora.file.name, job.lora_layers)
    teller.estimate(f"{job.card.name} for {job.target.name}", job.estimate)

    findings = []

    def tell(finding: Finding) -> None:
        findings.append(dataclasses.asdict(finding))
        teller.finding(finding)

    def check(folder: Path) -> dict[str, object]:
        return gated(
            folder, model=args.model, lora=args.lora, prompts=args.pictures, thorough=args.thorough, on_finding=tell
        )

    found = export(job, args.out, check=check, on_progress=teller.progress)
    size = sum(f.stat().st_size for f in args.out.rglob("*") if f.is_file())
    if args.json:
        told = {"findings": findings, "out": str(args.out), "bytes": size, "lora_layers": job.lora_layers}
        print(json.dumps(dataclasses.asdict(found) | told, indent=1))
    else:
        print(f"{args.out} holds {', '.join(found.components)}: {size / 1e6:,.1f} MB")
    return 0


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    """The arguments of the export, or of the command that comes first among them; `run` is what does it."""
    debug = list(arguments[:1]) == [DEBUG]  # before the command as well as behind it
    arguments = list(arguments[debug:])
    verb = arguments[0] if arguments and arguments[0] in VERBS else None
    module = importlib.import_module(VERBS[verb]) if verb else sys.modules[__name__]
    others = f"Other commands: {', '.join(f'python -m export {name}' for name in VERBS)}."
    parser = argparse.ArgumentParser(
        prog=f"python -m export {verb}" if verb else "python -m export",
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
    from export.telling import Teller

    tell = Teller.of(args).error
    return finish("export", lambda: args.run(args), debug=args.debug, smaller=SMALLER, tell=tell)
