"""similarity: how little each transformer block changes its input, the reason why KOALA keeps the first ones."""

import argparse
import json
import sys

from koala.cli.options import add_device, file_ending, library
from koala.cli.output import emit, say
from koala.console import no_bars
from koala.models.registry import find, torch_only
from koala.request import GenerationRequest

HELP = "measure how little each transformer block changes its input: JSON and an SVG figure"

SMALLER = "--vram GB with less than is free, a smaller model"  # remedies for running out of memory


def add(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("--model", required=True, metavar="MODEL", help="model name, hub id, folder or file")
    parser.add_argument(
        "--prompts", nargs="+", metavar="TEXT", help="prompts to average over (default: eight of the model's world)"
    )
    parser.add_argument("--steps", type=int, default=8, metavar="N", help="sampler steps, all measured (default: 8)")
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the first prompt; then the next (default: 0)"
    )
    parser.add_argument(
        "--out",
        type=file_ending(".json", "the figure goes next to it as .svg"),
        required=True,
        metavar="FILE.json",
        help="where the curves go",
    )
    add_device(parser)


def run(args: argparse.Namespace) -> int:
    """Prints the two files and what the figure shows, or the curves as JSON; exit status 0."""
    torch_only(find(args.model), "the similarity of its blocks")
    for k, prompt in enumerate(args.prompts or ("any",)):  # a bad field fails before the model is loaded
        GenerationRequest(model=args.model, prompt=prompt, steps=args.steps, seed=args.seed + k)
    from koala.evaluate.reports import circumstances
    from koala.evaluate.similarity import default_prompts, measure
    from koala.evaluate.similarity_figure import figure, sentence
    from koala.files.outputs import check_file, new_file

    no_bars()
    check_file(args.out)
    model = library(args, [args.model]).get(args.model)
    prompts = args.prompts or default_prompts(model)
    for curves in measure(model, prompts, steps=args.steps, seed=args.seed):
        say(f"{len(curves['prompts'])} of {len(prompts)} prompts")
    picture = args.out.with_suffix(".svg")
    curves |= {"figure": str(picture), "shows": sentence(curves)} | circumstances(
        sys.argv[1:], model.device, weights=[args.model]
    )
    for file, text in ((args.out, json.dumps(curves, indent=1) + "\n"), (picture, figure(curves))):
        with new_file(file) as partial:
            partial.write_text(text)
    emit(args, curves, f"{args.out}\n{picture}\n{curves['shows']}")
    return 0
