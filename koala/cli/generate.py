"""generate: draw pictures of one request."""

import argparse
import dataclasses

from koala.cli.options import add_device, add_request, add_runtime, file_ending, library, request_values, to_run
from koala.cli.output import claims_line, emit, pixel_bytes, plan_lines, progress, say_unread, timing_line
from koala.console import no_bars
from koala.request import GenerationRequest

HELP = "draw a picture"


def add(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    add_request(parser)
    parser.add_argument(
        "--out",
        type=file_ending(".png", "pictures are PNG files"),
        required=True,
        metavar="FILE.png",
        help="where the picture goes",
    )
    add_device(parser)
    add_runtime(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the files, where the time went, the memory plan and the claims, or JSON; exit status 0."""
    given = GenerationRequest(**request_values(args))
    (name,) = to_run(args, [given.model])  # an unknown one fails before torch is even imported
    request = dataclasses.replace(given, model=name)
    from koala.files.outputs import check_file
    from koala.sampling.generate import generate as draw
    from koala.sampling.out_of_memory import advising
    from koala.sampling.report import entry

    no_bars()
    check_file(args.out, pixel_bytes([request]))
    models = library(args, [request.model])
    with advising([request], models):
        result = draw(request, models.get(request.model), on_step=progress(request.model), num_previews=0)
    say_unread(result.request, result.unread)
    files = [str(p) for p in result.save(args.out)]
    values = entry(result, files)
    emit(args, values, "\n".join([*files, timing_line(values), *plan_lines(values), claims_line(values)]))
    return 0
