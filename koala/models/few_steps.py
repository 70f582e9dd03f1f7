"""Few-step models without a koala.json that says so: recognised by their sampler, or by a name that they still have."""

import re
from collections.abc import Iterable
from dataclasses import replace

from koala.models.cards import CARDS, ModelCard
from koala.unet.specs import UNetSpec

CONSISTENCY = ("lcm", "tcd")  # samplers of consistency models alone
CONSISTENCY_STEPS = 4


def consistent(sampler: str) -> dict[str, object]:
    """Settings of a folder whose own scheduler is a consistency model's; empty for another.

    Guidance is in what such a model learned, so it is drawn without.
    """
    return {"steps": CONSISTENCY_STEPS, "guidance": 0.0} if sampler in CONSISTENCY else {}


def named_like(names: Iterable[str], spec: UNetSpec) -> ModelCard | None:
    """The few-step model of this very network whose name one of these names contains, as copies of it keep it."""
    spoken = [_letters(name) for name in names]
    few = [card for card in CARDS.values() if card.steps < ModelCard.steps and card.spec]
    same = [card for card in few if card.spec == replace(spec, name=card.spec.name)]
    inside = [card for card in same if any(_letters(card.name) in name for name in spoken)]
    return max(inside, key=lambda card: len(card.name), default=None)


def _letters(name: str) -> str:
    """Letters and digits alone: publishers and people set the dashes as they like."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
