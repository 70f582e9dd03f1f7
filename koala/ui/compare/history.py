"""The comparisons of a visit: what each showed when it was done, and the strip that leads back to it."""

import secrets
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from koala.models.cards import ModelCard
from koala.ui import stage, widgets

if TYPE_CHECKING:
    from koala.sampling.result import GenerationResult

KEPT = 12  # comparisons


def finished(
    show: stage.Stage,
    results: Sequence["GenerationResult"],
    files: Sequence[Sequence[Path]],
    fields: Mapping[str, object],
    card: Callable[[str], ModelCard],
) -> dict:
    """A comparison that is done: its stage, times, verdict, fields, thumbnails, label and id.

    `results` and their `files` are in the order of the models; `fields` are the values of the tab's fields;
    `card` gives a model's card by its name.
    """
    from koala.sampling import report

    comparison = report.comparison(results, [[path.name for path in paths] for paths in files])
    seed = str(results[0].request.seed)
    verdict = widgets.verdicts(
        [model["title"] for model in show.value["models"]],
        [[report.claims(result, k) for result in results] for k in range(len(results[0].images))],
        comparison["models"][0]["no_verdict"],
        list(dict.fromkeys(text for model in comparison["models"] for text in model["not_asked"])),
    )
    return {
        "stage": show.say(f"Done. Seed {seed}.", "done"),
        "timing": widgets.timing(comparison, card),
        "verdict": verdict,
        "fields": {**fields, "seed": seed},
        "thumbnails": [stage.data_url(result.images[0], stage.THUMBNAIL) for result in results],
        "label": f"{fields['prompt']} (seed {seed})",
        "id": secrets.token_hex(4),
    }


def added(done: dict, history: Sequence[dict]) -> list[dict]:
    """The history with this comparison first; the oldest are forgotten."""
    return [done, *history][:KEPT]


def find(history: Sequence[dict], identifier: object) -> dict | None:
    """The comparison with this id; None if the visit has none."""
    return next((done for done in history if done["id"] == identifier), None)


def strip(history: Sequence[dict]) -> list[dict]:
    """What the strip shows of each comparison."""
    return [{key: done[key] for key in ("id", "label", "thumbnails")} for done in history]
