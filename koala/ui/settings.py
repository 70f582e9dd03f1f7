"""The Compare tab's fields <-> requests <-> the query of a link, with one order of fields for all."""

import re
from collections.abc import Callable, Mapping, Sequence
from urllib.parse import urlencode

from koala.errors import UserError
from koala.models.cards import ModelCard
from koala.request import GenerationRequest
from koala.ui.messages import page_words

SHARED = (
    "prompt",
    "negative_prompt",
    "seed",
    "scheduler",
    "width",
    "height",
    "images",
    "preset",
    "lora",
    "lora_strength",
)
TEXTS = ("prompt", "negative_prompt", "scheduler", "preset")
FILES = ("lora", "lora_strength")  # on this machine: a link cannot carry them
OWN = ("model", "steps", "guidance")  # one per model
SLOTS = "abcd"  # of the compared models; the first two are always there
MORE = SLOTS[2:]
FIELDS = (*SHARED, *(f"{name}_{slot}" for slot in SLOTS for name in OWN))
OWN_SCHEDULER = ""  # "each model's own"

Finder = Callable[[str], ModelCard]


def whole(value: object) -> object:
    """The whole number in a field: "7", 7.0 and 7 are 7. Anything else is returned for the check to refuse."""
    if isinstance(value, str):
        text = value.strip()
        return int(text) if re.fullmatch(r"[+-]?[0-9]{1,12}", text) else text[:40]
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _number(text: str) -> object:
    try:
        return float(text)
    except ValueError:
        return text[:40]


def to_requests(values: Mapping[str, object], find: Finder) -> list[GenerationRequest]:
    """A request for every model of the fields; UserError names the first field that cannot work."""
    shared = {name: values[name] or "" for name in ("prompt", "negative_prompt")}
    if values["seed"] in (None, ""):
        raise UserError("the seed is empty; type any whole number, or tick Random")
    shared["seed"] = whole(values["seed"])
    shared["images"] = whole(values["images"])
    shared |= {name: whole(values[name]) for name in ("width", "height") if values[name] is not None}
    shared |= {name: values[name] or None for name in ("scheduler", "lora")}
    shared |= {name: values[name] for name in ("preset", "lora_strength")}
    requests = []
    for slot in SLOTS:
        if slot in MORE and not values[f"model_{slot}"]:
            continue
        request = GenerationRequest(
            model=values[f"model_{slot}"] or "",
            steps=whole(values[f"steps_{slot}"]),
            guidance=values[f"guidance_{slot}"],
            **shared,
        )
        find(request.model)
        requests.append(request)
    return requests


def defaults(card: ModelCard, slot: str) -> dict[str, object]:
    """A model's own settings for its slot; the first model also decides the size."""
    own = {f"steps_{slot}": card.steps, f"guidance_{slot}": card.guidance}
    return own | ({"width": card.width, "height": card.height} if slot == "a" else {})


def others_empty(count: int) -> dict[str, object]:
    """The fields' values without a model in any slot after the first `count`."""
    return {f"model_{slot}": None for slot in SLOTS[count:]}


def from_requests(requests: Sequence[GenerationRequest], find: Finder) -> dict[str, object]:
    """The fields' values that give these requests again: all of a comparison, or one for its own slot."""
    first = requests[0]
    values = {name: getattr(first, name) for name in SHARED if name != "scheduler"}
    cards = [find(r.model) for r in requests[: len(SLOTS)]]
    own = all(r.scheduler in (None, c.scheduler) for r, c in zip(requests, cards, strict=False))
    values["scheduler"] = OWN_SCHEDULER if own else first.scheduler or OWN_SCHEDULER
    slots = SLOTS if len(cards) > 1 else ("b" if cards[0].teacher else "a")
    values |= others_empty(len(cards)) if len(cards) > 1 else {}
    for slot, request, card in zip(slots, requests, cards, strict=False):
        values[f"model_{slot}"] = card.name
        values[f"steps_{slot}"] = card.steps if request.steps is None else request.steps
        values[f"guidance_{slot}"] = card.guidance if request.guidance is None else request.guidance
    values["seed"] = str(first.seed)
    values["width"] = first.width or cards[0].width
    values["height"] = first.height or cards[0].height
    return values


def to_query(requests: Sequence[GenerationRequest]) -> str:
    """The query of a link that describes these requests, without what they leave to the models."""
    first = requests[0]
    values = {
        "prompt": first.prompt,
        "negative_prompt": first.negative_prompt,
        "seed": first.seed,
        "models": ",".join(r.model for r in requests),
        "scheduler": first.scheduler if len({r.scheduler for r in requests}) == 1 else None,
        "width": first.width,
        "height": first.height,
        "images": first.images if first.images > 1 else None,
        "preset": first.preset if first.preset != "quality" else None,
    }
    for field in ("steps", "guidance"):
        own = [getattr(r, field) for r in requests]
        values[field] = None if None in own else ",".join(map(str, own))
    return "?" + urlencode({k: v for k, v in values.items() if v not in ("", None)})


def from_query(query: Mapping[str, str], find: Finder) -> tuple[dict[str, object], list[str]]:
    """The query of a link -> the fields that it sets, and a sentence for each part that cannot be used."""
    values: dict[str, object] = {}
    complaints: list[str] = []
    cards: dict[str, ModelCard] = {}

    def take(name: str, field: str, value: object) -> None:
        try:
            GenerationRequest(**({"model": "any", "prompt": "any"} | {field: value}))
        except UserError as error:
            complaints.append(page_words(str(error)))
        else:
            values[name] = str(value) if field == "seed" else value

    for field in SHARED:
        if field in query and field not in FILES:
            take(field, field, query[field] if field in TEXTS else whole(query[field]))
    if "models" in query:
        names = query["models"].split(",")
        if not 2 <= len(names) <= len(SLOTS):
            complaints.append(
                f"the link names {len(names)} models; this page compares two to {len(SLOTS)}, as in models=first,second"
            )
        values = others_empty(max(2, len(names))) | values
        for slot, name in zip(SLOTS, names, strict=False):
            try:
                cards[slot] = find(name)
            except UserError as error:
                complaints.append(page_words(str(error)))
            else:
                values = {f"model_{slot}": cards[slot].name} | defaults(cards[slot], slot) | values
    for field, read in (("steps", whole), ("guidance", _number)):
        if field in query:
            for slot, text in zip(SLOTS, query[field].split(","), strict=False):
                take(f"{field}_{slot}", field, read(text))
    return values, complaints
