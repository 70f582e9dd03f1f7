"""attention: where the patches of a picture look, in one model or in several side by side."""

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

HELP = "record a run's attention and draw where its patches look: figures, strips and films"
PAPERS = (ROW.figure, PCA.figure)  # the figures of the paper


def add(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("--model", metavar="MODEL", help="model name, folder or hub id")
    parser.add_argument("--prompt", default=argparse.SUPPRESS, metavar="TEXT", help="what the picture shows")
    add_request(parser, leave_out=("model", "prompt", "images"))
    parser.add_argument("--compare", nargs="+", default=[], metavar="MODEL", help="models to set beside it")
    parser.add_argument(
        "--same-input", action="store_true", help="show the teacher what the student sees, instead of two free runs"
    )
    parser.add_argument(
        "--captures", nargs="+", type=Path, metavar="DIR", help="draw from saved captures, instead of a new run"
    )
    parser.add_argument(
        "--stages", nargs="+", type=str.upper, metavar="STAGE", help="such as UP-1 DW-2 (default: all with attention)"
    )
    parser.add_argument("--all-layers", action="store_true", help="record all layers of the stages, not only the last")
    parser.add_argument(
        "--layer", type=count, metavar="N", help="of each stage, from 1, with all layers recorded (default: the last)"
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
    place.add_argument("--pixel", type=pixel, metavar="X,Y", help="of the patch that rows look from (default: middle)")
    place.add_argument(
        "--box", type=box, metavar="X,Y,X,Y", help="left, top, right, bottom in px: rows are the mean of its patches"
    )
    parser.add_argument(
        "--step", type=number, default="middle", metavar="N", help="a number from 1, middle or mean (default: middle)"
    )
    parser.add_argument(
        "--head", type=number, default="mean", metavar="N", help="a number from 1, mean or max (default: mean)"
    )
    parser.add_argument("--paper-mode", action="store_true", help="pca: fit each step alone, heads side by side")
    parser.add_argument("--no-diagonal", action="store_true", help="leave out what a patch sees of itself")
    parser.add_argument(
        "--opacity", type=between(0, 1), default=0.75, metavar="N", help="of a map on its picture (default: 0.75)"
    )
    parser.add_argument(
        "--gamma", type=between(0.2, 2), default=1.0, metavar="N", help="below 1 lifts what is faint (default: 1)"
    )
    parser.add_argument("--page", action="store_true", help="also page.html: point and look, with no server")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="new folder for captures and figures")
    add_device(parser)


def pixel(text: str) -> tuple[float, ...]:
    """x,y of a picture, in px."""
    return _numbers(text, 2, f"{text!r} is no pixel; give x,y such as 128,96")


def box(text: str) -> tuple[float, ...]:
    """left,top,right,bottom in a picture, in px."""
    return _numbers(text, 4, f"{text!r} is no box; give left,top,right,bottom such as 64,64,128,96")


def count(text: str) -> int:
    """The number of a layer, from 1."""
    if not text.isdecimal() or text.strip("0") == "":
        raise argparse.ArgumentTypeError(f"{text!r} is no layer; they count from 1")
    return int(text)


def between(low: float, high: float) -> Callable[[str], float]:
    """The parser of a number within these limits."""

    def parse(text: str) -> float:
        (found,) = _numbers(text, 1, f"{text!r} is no number from {low:g} to {high:g}")
        if not low <= found <= high:
            raise argparse.ArgumentTypeError(f"{text!r} is no number from {low:g} to {high:g}")
        return found

    return parse


def _numbers(text: str, count: int, problem: str) -> tuple[float, ...]:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if len(found) != count or not all(map(math.isfinite, found)):
        raise argparse.ArgumentTypeError(problem)
    return found


def run(args: argparse.Namespace) -> int:
    """Prints the captures, the figures' files and the models' agreement, or JSON; exit status 0."""
    given = request_values(args)
    if args.captures and (superfluous := _of_a_run(args, given)):
        raise UserError(f"--captures draws what was recorded; leave out what is of a run: {', '.join(superfluous)}")
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
    found = _written(args, sides, results, args.stages or stages, choices)
    emit(args, found, "\n".join(_lines(found)))
    return 0


def _of_a_run(args: argparse.Namespace, given: Iterable[str]) -> list[str]:
    """The options that only a new run heeds, as they were typed."""
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
    from koala.sampling.out_of_memory import telling

    models = library(args, [r.model for r in requests])
    with telling(requests, models):
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
        found = prepared.run(lambda k, step: progress(prepared.titles[k])(step))
    for request, (result, _) in zip(prepared.requests, found, strict=True):
        say_unread(request, result.unread)
    sides = [
        Side(title=title, picture=result.images[0], record=record)
        for title, (result, record) in zip(prepared.titles, found, strict=True)
    ]
    return sides, [result for result, _ in found], prepared.stages


def _saved(args: argparse.Namespace, choices: list["Choices"]):
    """Sides, no results, and the stages of captures that were saved."""
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
    found: dict = {"models": [], "stages": list(stages), "figures": {}, "strips": {}, "films": {}, "page": None}
    with new_folder(out, sum(side.record.bytes for side in sides)) as folder:
        for k, (side, result) in enumerate(zip(sides, results, strict=bool(results)), 1):
            name = f"{k}-{Path(side.record.model).name}"
            side.record.save(folder / name, result)
            one = {"capture": str(out / name), "title": side.title} | _cost(side.record)
            found["models"].append(
                entry(result, [str(out / name / "picture.png")]) | one | {"model": side.record.model}
            )
        for choice in choices:
            drawn = words(sides, stages[-1], choice) if choice.map == WORD else figure(sides, stages, choice)
            drawn.save(folder / f"{choice.kind}.png")
            found["figures"][choice.kind] = str(out / f"{choice.kind}.png")
            for stage in stages if choice.map != WORD else ():
                strip, film = over_steps(sides, stage, choice)
                name = f"{choice.kind}-{stage}"
                strip.save(folder / f"{name}.png")
                (folder / f"{name}.gif").write_bytes(film)
                found["strips"][name], found["films"][name] = str(out / f"{name}.png"), str(out / f"{name}.gif")
        if args.page:
            capture = Capture(prompt=sides[0].record.prompt, sides=tuple(sides))
            (folder / "page.html").write_text(page(capture), encoding="utf-8")
            found["page"] = str(out / "page.html")
    return found | {"agreement": _agreements(sides)}


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
            "models": [sides[0].title, other.title],
            "stages": [dataclasses.asdict(s) for s in agreement(sides[0].record, other.record)],
        }
        for other in sides[1:]
    ]


def _lines(found: dict) -> list[str]:
    lines = []
    for one in found["models"]:
        took, whole = one["overhead_ms"], one["timing"]["total_ms"]
        own = one["request"]["model"] == one["model"]  # else it only looked at what the student saw
        share = f" of a run of {whole:.0f} ms, {100 * took / whole:.0f} %" if own else ""
        lines.append(f"{one['title']}: {one['capture']}, {size(one['bytes'])}; recording took {took:.0f} ms{share}")
    lines += [*found["figures"].values(), *found["strips"].values(), *found["films"].values()]
    lines += [found["page"]] if found["page"] else []
    for one in found["agreement"]:
        lines.append(f"{' and '.join(one['models'])}, Jensen-Shannon divergence (0 alike, 1 nothing in common):")
        for stage in one["stages"]:
            values = stage["divergence"]
            said = (
                stage["absent"]
                or f"{sum(values) / len(values):.4f} on average over {len(values)} step{'s' * (len(values) > 1)}"
            )
            lines.append(f"  {stage['stage']}: {said}")
    return lines
