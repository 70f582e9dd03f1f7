"""`koala export --target web`: the models' exports in a temporary folder, then the page around them."""

import argparse
import dataclasses
import json
import sys
import tempfile
from pathlib import Path

from koala.errors import UserError
from koala.export.estimate import part_bytes
from koala.export.folder import plan
from koala.export.reporting import ProgressReporter
from koala.export.web import packages, site
from koala.export.web.parts import LARGEST, SAMPLERS
from koala.export.writing import write_export
from koala.files.outputs import check_new_folder
from koala.models.registry import find
from koala.words import gigabytes

DTYPE = "fp32"  # the default: exact, and the quicker one in WebAssembly


def publish(args: argparse.Namespace, reporter: ProgressReporter) -> int:
    """Write the page; prints what a visitor downloads, or JSON; exit status 0."""
    models = args.models or [args.model]
    _check(args, models)
    check_new_folder(args.out)
    packages.fetched(packages.RUNTIME, args.runtime)  # before the work, not after it
    with tempfile.TemporaryDirectory() as scratch:
        exports = []
        for k, name in enumerate(models):
            card = find(name)
            if card.runtime == "onnx":
                exports.append(Path(card.source))
                continue
            exports.append(Path(scratch) / str(k))
            write_export(args, name, exports[-1], reporter, target="universal", dtype=args.dtype or DTYPE)
        sizes = site.write(exports, args.out, runtime=args.runtime)
    if args.json:
        values = dataclasses.asdict(sizes) | {"first": sizes.first, "whole": sizes.whole, "out": str(args.out)}
        print(json.dumps(values, indent=1))
    else:
        print(f"{args.out} is a page of {', '.join(sizes.models)}: {sizes.line()}")
        print(f"Open it with: python -m http.server --directory {args.out}", file=sys.stderr)
    return 0


def _check(args: argparse.Namespace, models: list[str]) -> None:
    """UserError for what a page cannot show, before anything is exported."""
    if args.lora:
        raise UserError(
            "a page takes no --lora; fuse it into an export (python -m koala export --model MODEL --lora FILE --out "
            "DIR) and name that folder in --models"
        )
    if args.components != "all":
        raise UserError("a page needs the whole pipeline; leave --components out")
    if len(models) > site.MAX_MODELS:
        raise UserError(f"a page shows at most {site.MAX_MODELS} models, not {len(models)}; leave some out")
    for name in models:
        card = find(name)
        if card.scheduler not in SAMPLERS:
            raise UserError(
                f"{card.title} is drawn with {card.scheduler}, and the page only has {' and '.join(SAMPLERS)}; take "
                "another model"
            )
        if card.runtime == "onnx":
            if args.dtype:
                raise UserError(f"{name} is an export and has its type already; leave --dtype out")
            continue
        job = plan(name, dtype=args.dtype or DTYPE)
        size = part_bytes(job.spec, job.components, job.dtype)["unet"]
        if size > LARGEST:
            raise UserError(
                f"the U-Net of {card.title} would have {gigabytes(size)}, and a browser takes {gigabytes(LARGEST, 0)} "
                "at most; take a smaller model"
            )
