"""attention: where the patches of a picture attend, in one model or several side by side."""

import argparse
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from koala.attention.kinds import FIGURES, PCA, ROW, WORD
from koala.attention.plan import BUDGET, size
from koala.cli.options import add_device, add_request, gigabytes, library, number, request_values
from koala.cli.output import emit, progress, say, say_unread
from koala.console import no_bars
from koala.errors import UserError
from koala.files.outputs import check_new_folder
from koala.models.cards import CARDS
from koala.models.registry import find
from koala.request import GenerationRequest

if TYPE_CHECKING:
    from koala.attention.capture import Side
    from koala.attention.figures import Choices
    from koala.attention.recorded import AttentionRecord
    from koala.sampling.result import GenerationResult

HELP = "record a run's attention and draw where its patches attend: figures, strips and films"
PAPERS = (ROW.figure, PCA.figure)  # the figures of the paper


def add(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("--model", metavar="MODEL", help="model name, folder or hub id")
    parser.add_argument("--prompt", default=argparse.SUPPRESS, metavar="TEXT", help="what the picture shows")
    add_request(parser, leave_out=("model", "prompt", "images"))
    parser.add_argument("--compare", nargs="+", default=[], metavar="MODEL", help="models to compare with it")
    parser.add_argument(
        "--same-input",
        action="store_true",
        help="give the teacher the student's inputs, instead of two independent runs",
    )
    parser.add_argument(
        "--captures", nargs="+", type=Path, metavar="DIR", help="draw from saved captures instead of a new run"
    )
    parser.add_argument(
        "--stages", nargs="+", type=str.upper, metavar="STAGE", help="such as UP-1 DW-2 (default: all with attention)"
    )
    parser.add_argument("--all-layers", action="store_true", help="record all layers of the stages, not only the last")
    parser.add_argument(
        "--layer", type=count, metavar="N", help="layer of each stage, from 1; records all layers (default: the last)"
    )
    parser.add_argument("--no-words", action="store_true", help="record no cross-attention")
    parser.add_argument(
        "--budget", type=gigabytes, default=BUDGET, metavar="GB", help="memory for captures (default: 2)"
    )
    parser.add_argument(
        "--figure",
        nargs="+",
        default=PAPERS,
        metavar="KIND",
        help=f"{', '.join(FIGURES)} (default: {' '.join(PAPERS)})",
    )
    place = parser.add_mutually_exclusive_group()
    place.add_argument(
        "--pixel", type=pixel, metavar="X,Y", help="the patch that rows start from (default: the middle)"
    )
    place.add_argument(
        "--box", type=box, metavar="X,Y,X,Y", help="left, top, right, bottom in px: rows average its patches"
    )
    parser.add_argument(
        "--step", type=number, default="middle", metavar="N", help="a number from 1, middle or mean (default: middle)"
    )
    parser.add_argument(
        "--head", type=number, default="mean", metavar="N", help="a number from 1, mean or max (default: mean)"
    )
    parser.add_argument(
        "--paper-mode", action="store_true", help="for pca: fit each step separately, heads side by side"
    )
    parser.add_argument("--no-diagonal", action="store_true", help="leave out each patch's attention to itself")
    parser.add_argument(
        "--opacity",
        type=between(0, 1),
        default=0.75,
        metavar="N",
        help="opacity of a map on its picture (default: 0.75)",
    )
    parser.add_argument(
        "--gamma", type=between(0.2, 2), default=1.0, metavar="N", help="below 1 brightens faint areas (default: 1)"
    )
    parser.add_argument(
        "--page", action="store_true", help="also write page.html, an interactive page that needs no server"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for captures and figures")
    add_device(parser)


def pixel(text: str) -> tuple[float, ...]:
    """x,y of a picture, in px."""
    return _numbers(text, 2, f"{text!r} is not a pixel; give x,y such as 128,96")


def box(text: str) -> tuple[float, ...]:
    """left,top,right,bottom in a picture, in px."""
    return _numbers(text, 4, f"{text!r} is not a box; give left,top,right,bottom such as 64,64,128,96")


def count(text: str) -> int:
    """The number of a layer, from 1."""
    if not text.isdecimal() or text.strip("0") == "":
        raise argparse.ArgumentTypeError(f"{text!r} is not a layer; layers count from 1")
    return int(text)


def between(low: float, high: float) -> Callable[[str], float]:
    """The parser of a number within these limits."""

    def parse(text: str) -> float:
        (value,) = _numbers(text, 1, f"{text!r} is not a number from {low:g} to {high:g}")
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number from {low:g} to {high:g}")
        return value

    return parse


def _numbers(text: str, count: int, problem: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in text.split(","))
    except ValueError:
        numbers = ()
    if len(numbers) != count or not all(map(math.isfinite, numbers)):
        raise argparse.ArgumentTypeError(problem)
    return numbers


def run(args: argparse.Namespace) -> int:
    """Prints the captures, the figures' files and the models' agreement, or JSON; exit status 0."""
    given = request_values(args)
    if args.captures and (superfluous := _of_a_run(args, given)):
        raise UserError(
            f"--captures draws saved recordings; leave out the options of a new run: {', '.join(superfluous)}"
        )
    if not args.captures and not (args.model and "prompt" in given):
        raise UserError("name a --model and a --prompt to record, or --captures to draw from")
    check_new_folder(args.out)
    names = [] if args.captures else [args.model, *args.compare]
    requests = [GenerationRequest(**given | {"model": name}) for name in names]
    for request in requests:
        find(request.model)
    no_bars()
    choices = _choices(args)
    if args.captures:
        sides, results, stages = _saved(args, choices)
    else:
        sides, results, stages = _recorded(args, requests, choices)
    written = _written(args, sides, results, args.stages or stages, choices)
    emit(args, written, "\n".join(_lines(written)))
    return 0


def _of_a_run(args: argparse.Namespace, given: Iterable[str]) -> list[str]:
    """The options that only affect a new run, as they were typed."""
    own = ("compare", "same_input", "all_layers", "no_words", "device", "vram", "dtype")
    named = [*(n for n in given if getattr(args, n) is not None), *(n for n in own if getattr(args, n))]
    named += ["budget"] if args.budget != BUDGET else []
    return [f"--{name.replace('_', '-')}" for name in named]


def _choices(args: argparse.Namespace) -> list["Choices"]:
    """One per figure; people count steps and heads from 1."""
    from koala.attention.figures import Choices

    step, head = (v - 1 if isinstance(v, int) else v for v in (args.step, args.head))
    settings = {"pixel": args.pixel, "box": args.box, "layer": args.layer and args.layer - 1}
    settings |= {"diagonal": not args.no_diagonal, "paper": args.paper_mode}
    settings |= {"opacity": args.opacity, "gamma": args.gamma}
    return [Choices(kind=kind, step=step, head=head, **settings) for kind in args.figure]


def _recorded(args: argparse.Namespace, requests: list[GenerationRequest], choices: list["Choices"]):
    """Sides, results and stages of new runs."""
    from koala.attention.capture import Side
    from koala.attention.together import prepare
    from koala.sampling.out_of_memory import advising

    models = library(args, [r.model for r in requests])
    with advising(requests, models):
        prepared = prepare(
            requests,
            models,
            stages=args.stages,
            every=args.all_layers or args.layer is not None,
            words=not args.no_words,
            budget_bytes=args.budget,
            shared=args.same_input,
        )
        for choice in choices:
            for plan, title in zip(prepared.plans, prepared.titles, strict=True):
                choice.check(plan, title)
        say(f"recording takes {size(sum(plan.bytes for plan in prepared.plans))} of {size(args.budget)}")
        check_new_folder(args.out, sum(plan.bytes for plan in prepared.plans))
        recordings = prepared.run(lambda k, step: progress(prepared.titles[k])(step))
    for request, (result, _) in zip(prepared.requests, recordings, strict=True):
        say_unread(request, result.unread)
    sides = [
        Side(title=title, picture=result.images[0], record=record)
        for title, (result, record) in zip(prepared.titles, recordings, strict=True)
    ]
    return sides, [result for result, _ in recordings], prepared.stages


def _saved(args: argparse.Namespace, choices: list["Choices"]):
    """Sides, no results, and the stages of saved captures."""
    from koala.attention.capture import Side
    from koala.attention.recorded import AttentionRecord, picture

    sides = []
    for folder in args.captures:
        record = AttentionRecord.load(folder)
        sides.append(Side(title=_title(record.model), picture=picture(folder, record), record=record))
        for choice in choices:
            choice.check(record, record.model)
    return sides, [], tuple(dict.fromkeys(stage for side in sides for stage in side.record.stages))


def _title(model: str) -> str:
    return CARDS[model].title if model in CARDS else Path(model).name


def _written(
    args: argparse.Namespace,
    sides: list["Side"],
    results: list["GenerationResult"],
    stages: Sequence[str],
    choices: list["Choices"],
) -> dict:
    """Draw and save everything, in one new folder that is whole or absent; what was written, as JSON."""
    from koala.attention.capture import Capture
    from koala.attention.figures import figure, over_steps, words
    from koala.attention.page import page
    from koala.files.outputs import new_folder
    from koala.sampling.report import entry

    out = args.out
    report: dict = {"models": [], "stages": list(stages), "figures": {}, "strips": {}, "films": {}, "page": None}
    with new_folder(out, sum(side.record.bytes for side in sides)) as folder:
        for k, (side, result) in enumerate(zip(sides, results, strict=bool(results)), 1):
            name = f"{k}-{Path(side.record.model).name}"
            side.record.save(folder / name, result)
            one = {"capture": str(out / name), "title": side.title} | _cost(side.record)
            report["models"].append(
                entry(result, [str(out / name / "picture.png")]) | one | {"model": side.record.model}
            )
        for choice in choices:
            drawn = words(sides, stages[-1], choice) if choice.map == WORD else figure(sides, stages, choice)
            drawn.save(folder / f"{choice.kind}.png")
            report["figures"][choice.kind] = str(out / f"{choice.kind}.png")
            for stage in stages if choice.map != WORD else ():
                strip, film = over_steps(sides, stage, choice)
                name = f"{choice.kind}-{stage}"
                strip.save(folder / f"{name}.png")
                (folder / f"{name}.gif").write_bytes(film)
                report["strips"][name], report["films"][name] = str(out / f"{name}.png"), str(out / f"{name}.gif")
        if args.page:
            capture = Capture(prompt=sides[0].record.prompt, sides=tuple(sides))
            (folder / "page.html").write_text(page(capture), encoding="utf-8")
            report["page"] = str(out / "page.html")
    return report | {"agreement": _agreements(sides)}


def _cost(record: "AttentionRecord") -> dict:
    return {
        "bytes": record.bytes,
        "overhead_ms": round(record.overhead_ms, 1),
        "layers": [x.path for x in record.layers],
        "half": record.half,
    }


def _agreements(sides: list["Side"]) -> list[dict]:
    """Every model against the first, per stage and step."""
    from koala.attention.agreement import agreement

    return [
        {
            "models": [sides[0].title, side.title],
            "stages": [dataclasses.asdict(s) for s in agreement(sides[0].record, side.record)],
        }
        for side in sides[1:]
    ]


def _lines(report: dict) -> list[str]:
    lines = []
    for one in report["models"]:
        took, whole = one["overhead_ms"], one["timing"]["total_ms"]
        own = one["request"]["model"] == one["model"]  # else it only received the student's inputs
        share = f" of a run of {whole:.0f} ms, {100 * took / whole:.0f} %" if own else ""
        lines.append(f"{one['title']}: {one['capture']}, {size(one['bytes'])}; recording took {took:.0f} ms{share}")
    lines += [*report["figures"].values(), *report["strips"].values(), *report["films"].values()]
    lines += [report["page"]] if report["page"] else []
    for one in report["agreement"]:
        lines.append(f"{' and '.join(one['models'])}, Jensen-Shannon divergence (0: identical, 1: nothing in common):")
        for stage in one["stages"]:
            values = stage["divergence"]
            value = (
                stage["absent"]
                or f"{sum(values) / len(values):.4f} on average over {len(values)} step{'s' * (len(values) > 1)}"
            )
            lines.append(f"  {stage['stage']}: {value}")
    return lines
