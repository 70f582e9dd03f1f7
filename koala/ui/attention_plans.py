"""What a capture of the app records, and how much of it a visitor may keep; without torch, so that the page has it."""

from collections.abc import Sequence

from koala.attention import pairing
from koala.attention.plan import BUDGET, AttentionPlan
from koala.registry import ModelCard
from koala.request import RequestError
from koala.specs import UNetSpec

PUBLIC_BUDGET = 2 * 10**8  # bytes of one capture where strangers reach the app


def specs(cards: Sequence[ModelCard]) -> list[UNetSpec]:
    """The topologies of these models, as their cards tell them."""
    for card in cards:
        if card.spec is None:
            raise RequestError(f"the name {card.title} does not tell which layers it has; choose it by its folder")
    return [card.spec for card in cards]


def plans(
    cards: Sequence[ModelCard],
    width: int,
    height: int,
    steps: int,
    *,
    stages: Sequence[str] | None = None,
    every: bool = False,
    words: bool = True,
    same_input: bool = False,
    public: bool = False,
) -> list[AttentionPlan]:
    """One plan per model, alike in size and steps; RequestError for what cannot be recorded, with what can."""
    found = specs(cards)
    if stages is not None and not stages:
        raise RequestError("no stage is chosen, so there is nothing to record; choose at least one")
    if same_input and (len(found) != 2 or found[0] == found[1]):
        raise RequestError("the same input needs a teacher and a student of it; choose two such models")
    return pairing.plans(
        found,
        pairing.paired(found, stages=stages, every=every),
        width,
        height,
        [steps] * len(found),
        cross=words,
        budget_bytes=PUBLIC_BUDGET if public else BUDGET,
    )
