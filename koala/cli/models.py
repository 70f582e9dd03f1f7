"""models: every model by name."""

import argparse
from pathlib import Path

from koala.cli.output import emit, say
from koala.files.reading import read_object
from koala.hardware.torch_build import advice_here
from koala.models.cards import CARDS
from koala.models.registry import find
from koala.unet.config import from_config
from koala.unet.costs import parameters
from koala.words import gigabytes

HELP = "list every model by name, with its size, its licence and whether it is on this machine; needs no network"


def add(parser: argparse.ArgumentParser) -> None:
    """The verb's options."""
    parser.add_argument("models", nargs="*", metavar="MODEL", help="list only these: names, folders or hub ids")


def run(args: argparse.Namespace) -> int:
    """Prints a table, one row per model, or JSON; exit status 0, whether the models are on this machine or not.

    Reports on stderr if this build of torch cannot use the machine's card.
    """
    cards = [find(name) for name in args.models] or list(CARDS.values())
    from koala.errors import UserError
    from koala.models.locate import locate

    rows = []
    for card in cards:
        try:
            folder, needs = locate(card).folder, None
        except UserError as error:
            folder, needs = None, str(error)
        rows.append(
            {
                "name": card.name,
                "title": card.title,
                "aliases": card.aliases,
                "parameters": card.parameters or (_count(folder) if folder else None),
                "location": str(folder or card.source),
                "available": folder is not None,
                "needs": needs,
                "download_bytes": card.download_bytes,
                "licence": card.licence,
                "steps": card.steps,
                "guidance": card.guidance,
                "scheduler": card.scheduler,
                "width": card.width,
                "height": card.height,
                "negative_prompt": card.negative_prompt,
                "teacher": card.teacher,
                "runtime": card.runtime,
            }
        )
    emit(args, rows, _table(rows))
    if advice := advice_here():
        say(str(advice))
    return 0


def _count(folder: Path) -> int:
    """U-Net parameters of a model without a card, from its config."""
    file = folder / "unet" / "config.json"
    return parameters(from_config(read_object(file), str(folder), str(file)))


def _table(rows: list[dict]) -> str:
    heads = ("name", "U-Net params", "here", "steps", "guidance", "size", "licence")
    lines = [heads]
    for r in rows:
        here = "yes" if r["available"] else gigabytes(r["download_bytes"]) if r["download_bytes"] else "no"
        params = f"{r['parameters']:,}" if r["parameters"] else "?"
        size = f"{r['width']}x{r['height']}"
        lines.append((r["name"], params, here, str(r["steps"]), f"{r['guidance']:g}", size, r["licence"]))
    widths = [max(len(line[k]) for line in lines) for k in range(len(heads))]
    right = (False, True, True, True, True, True, False)
    table = "\n".join(
        "  ".join(
            f"{cell:>{w}}" if to_right else f"{cell:{w}}" for cell, w, to_right in zip(line, widths, right, strict=True)
        ).rstrip()
        for line in lines
    )
    if any(not r["available"] for r in rows):
        table += "\nA size under `here` is the download's: python -m koala fetch NAME, or the first use fetches it."
    return table
