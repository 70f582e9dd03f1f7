"""eval: score models."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from koala.cli.options import add_device, library
from koala.cli.output import emit, say
from koala.console import no_bars
from koala.errors import UserError
from koala.evaluate.settings import SUITES, Settings, check, flag
from koala.models.cards import ModelCard
from koala.models.registry import find

HELP = "score a model, or several over the number of steps"
SMALLER = "--vram GB with less than is free, a smaller model"  # remedies for running out of memory


def add(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("--model", nargs="+", required=True, metavar="MODEL", help="model name or folder")
    parser.add_argument(
        "--suite",
        choices=SUITES,
        default="shapes",
        help="; ".join(f"{name}: {suite.help}" for name, suite in SUITES.items()),
    )
    for field in dataclasses.fields(Settings):
        parser.add_argument(
            flag(field.name), default=argparse.SUPPRESS, help=field.metadata["help"], **field.metadata["parse"]
        )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE.json",
        help="where the report goes; the suite steps adds its plot, FILE.svg, and its tables, FILE.md; for the suite "
        "prompts a folder, DIR",
    )
    add_device(parser)


def _teacher(card: ModelCard) -> str:
    if card.teacher is None:
        raise UserError(f"the card of {card.name} names no teacher; name one with --teacher")
    return card.teacher


def _report_file(suite: str, out: Path | None) -> Path | None:
    """The JSON file of the report, checked before hours of work."""
    if suite == "prompts":
        if out is None or out.suffix == ".json":
            raise UserError("the suite prompts fills a folder; name it with --out DIR, the report goes into it")
        return out / "report.json"
    if suite == "steps" and out is None:
        raise UserError("the suite steps writes a report, tables and a plot; say where with --out FILE.json")
    if out and (out.is_dir() or out.suffix != ".json"):
        raise UserError(f"--out names the report's file, FILE.json, not {out}")
    return out


def run(args: argparse.Namespace) -> int:
    """Prints the suite's results and where its report is, or the report as JSON; exit status 0."""
    given = {f.name: getattr(args, f.name) for f in dataclasses.fields(Settings) if hasattr(args, f.name)}
    settings = Settings(**given)
    check(args.suite, args.model, settings)
    cards = [find(name) for name in args.model]
    if args.suite == "agreement" and not settings.teacher:
        settings = dataclasses.replace(settings, teacher=_teacher(cards[0]))
    names = [*args.model, *([settings.teacher] if settings.teacher else [])]
    file = _report_file(args.suite, args.out)
    from koala.evaluate import reports
    from koala.evaluate.reports import lines
    from koala.files.outputs import check_file, new_file

    no_bars()
    if file:
        check_file(file)
    models = library(args, names)
    models.get_all(names)  # together, so that all get a precision in which they fit on the device at once
    report = reports.evaluate(args.suite, args.model, settings, models, say, args.out)
    report |= reports.circumstances(sys.argv[1:], models.device, weights=names)
    if file:
        with new_file(file) as partial:
            partial.write_text(json.dumps(report, indent=1) + "\n")
    if args.suite == "steps":
        from koala.evaluate.steps_figure import figure
        from koala.evaluate.steps_tables import markdown

        for place, text in ((file.with_suffix(".svg"), figure(report)), (file.with_suffix(".md"), markdown(report))):
            with new_file(place) as partial:
                partial.write_text(text.rstrip("\n") + "\n")
        say(f"plot: {file.with_suffix('.svg')}, tables: {file.with_suffix('.md')}")
    emit(args, report, "\n".join([*lines(report), *([f"report: {file}"] if file else [])]))
    return 0
