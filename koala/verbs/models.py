"""models: every model by name."""

import argparse

from koala.registry import CARDS
from koala.verbs.output import emit

HELP = "list every model by name, with its size, licence and whether it is here"


def add(parser: argparse.ArgumentParser) -> None:
    """No options of its own."""


def run(args: argparse.Namespace) -> int:
    from koala.locate import availability

    rows = []
    for card in CARDS.values():
        available, location = availability(card)
        rows.append(
            {
                "name": card.name,
                "title": card.title,
                "parameters": card.parameters,
                "location": location if available else card.source,
                "available": available,
                "needs": None if available else location,
                "licence": card.licence,
                "steps": card.steps,
                "guidance": card.guidance,
                "scheduler": card.scheduler,
                "teacher": card.teacher,
            }
        )
    width = max(len(r["name"]) for r in rows)
    lines = [
        f"{r['name']:{width}}  {r['parameters']:>13,}  {'ready' if r['available'] else '-':5}  {r['licence']}"
        for r in rows
    ]
    emit(args, rows, "\n".join([f"{'name':{width}}  {'U-Net params':>13}  here   licence", *lines]))
    return 0
