"""compare: several models on the same noise, timed."""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from koala.cli.options import add_device, add_request, add_runtime, file_ending, library, request_values, to_run
from koala.cli.output import claims_line, emit, pixel_bytes, plan_lines, progress, say_unread, timing_line
from koala.console import no_bars
from koala.models.registry import find
from koala.request import GenerationRequest
from koala.sampling.resolve import one_each
from koala.words import settings_text

if TYPE_CHECKING:
    from koala.sampling.generate import Step

HELP = "draw the same noise with several models and compare their times"
OWN = ("steps", "guidance")  # each model may have its own


def add(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument(
        "--models", nargs="+", required=True, metavar="MODEL", help="two or more; the first is the baseline"
    )
    add_request(parser, leave_out=("model",), one_each=OWN)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder for the pictures")
    parser.add_argument(
        "--strip",
        type=file_ending(".png", "the strip is a picture"),
        metavar="FILE.png",
        help="also draw each model's estimate of the picture after every step, one row per model, eight steps at most",
    )
    add_device(parser)
    add_runtime(parser)


def run(args: argparse.Namespace) -> int:
    """Prints each model's file, timing and claims, and the speed-ups over the first, or JSON; exit status 0."""
    given, count = request_values(args), len(args.models)
    own = {field: one_each(field, given.pop(field), count) for field in OWN if field in given}
    requests = [
        GenerationRequest(model=model, **given, **{field: values[k] for field, values in own.items()})
        for k, model in enumerate(args.models)
    ]
    names = to_run(args, args.models)
    requests = [dataclasses.replace(r, model=name) for r, name in zip(requests, names, strict=True)]
    from koala.attention.denoising import PREVIEWS, denoising_strip
    from koala.evaluate.reports import circumstances
    from koala.files.outputs import check_file, check_folder, new_file
    from koala.sampling.compare import compare as draw
    from koala.sampling.compare import speedup
    from koala.sampling.out_of_memory import advising
    from koala.sampling.previews import preview_steps
    from koala.sampling.report import comparison

    no_bars()
    check_folder(args.out, pixel_bytes(requests))
    if args.strip:
        check_file(args.strip, pixel_bytes(requests))
    num_previews = PREVIEWS if args.strip else 0
    previews: list[dict] = [{} for _ in requests]
    shows = [progress(request.model) for request in requests]

    def on_step(position: int, step: "Step") -> None:
        shows[position](step)
        if step.index in preview_steps(step.total, num_previews):
            previews[position][step.index] = step.preview

    models = library(args, names)
    with advising(requests, models):
        results = draw(
            requests,
            models,
            on_step=on_step,
            num_previews=num_previews,
        )
    for result in results:
        say_unread(result.request, result.unread)
    together = tuple(r.request for r in results)
    files = [
        [str(p) for p in r.save(args.out / f"{k}-{Path(r.request.model).name}.png", together)]
        for k, r in enumerate(results, 1)
    ]
    report = circumstances(sys.argv[1:], models.device, weights=names) | comparison(results, files)
    lines = []
    for one in report["models"]:
        how = settings_text(one["request"]["steps"], one["request"]["guidance"], one["timing"]["unet_calls"])
        lines += [f"{one['model']}: {one['image']}", f"  {how}", f"  {timing_line(one)}", f"  {claims_line(one)}"]
    for result in results[1:]:
        gained = speedup(results[0].timing, result.timing)
        lines.append(f"{result.request.model} against {results[0].request.model}: {gained.sentence()}")
    lines += plan_lines(next((one for one in report["models"] if one["plan"]), report["models"][0]))
    if args.strip:
        titles = [find(result.request.model).title for result in results]
        sheet = denoising_strip(together, titles, previews, [result.images[0] for result in results])
        with new_file(args.strip) as partial:
            sheet.save(partial, "PNG")
        report["strip"] = str(args.strip)
        lines.append(f"step by step: {args.strip}")
    emit(args, report, "\n".join([*lines, f"on {report['device']}; warm-up is not counted"]))
    return 0
