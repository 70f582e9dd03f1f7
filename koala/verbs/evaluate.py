"""eval: score a model."""

import argparse
import json
import sys
from pathlib import Path

from koala.console import no_bars
from koala.registry import find
from koala.request import RequestError
from koala.verbs.options import add_device
from koala.verbs.output import emit, say

HELP = "score a model"


def add(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", required=True, metavar="MODEL", help="model name or folder")
    parser.add_argument(
        "--suite",
        choices=("shapes", "judge"),
        default="shapes",
        help="shapes: which claims hold in its pictures; judge: how exact the judge is, before and after its VAE",
    )
    parser.add_argument("--num-prompts", type=int, default=500, metavar="N", help="prompts per suite (default 500)")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where the report goes")
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    find(args.model)
    if not 1 <= args.num_prompts <= 2000:
        raise RequestError(f"--num-prompts must lie between 1 and 2000, not {args.num_prompts}; the score uses 500")
    from koala.evaluate import reports
    from koala.loading import Library

    no_bars()
    model = Library(args.device).get(args.model)
    found = reports.SUITES[args.suite](model, args.num_prompts, say)
    found |= reports.circumstances(sys.argv[1:], model)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(found, indent=1) + "\n")
    emit(args, found, json.dumps(found, indent=1))
    return 0
