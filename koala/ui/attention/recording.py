"""What a capture of the app records, and how much a visitor may keep. Without torch, so that the page can use it."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from koala.attention import pairing
from koala.attention.plan import BUDGET, AttentionPlan
from koala.errors import UserError
from koala.models.cards import ModelCard
from koala.models.registry import torch_only
from koala.request import GenerationRequest

if TYPE_CHECKING:
    from koala.models.library import Library

PUBLIC_BUDGET = 2 * 10**8  # bytes of one capture in a public app


def budget(*, public: bool) -> int:
    """Bytes of one capture."""
    return PUBLIC_BUDGET if public else BUDGET


@dataclass(frozen=True, kw_only=True)
class Recording:
    """What is kept of the models that draw."""

    stages: Sequence[str] | None = None  # None: all with attention
    every: bool = False  # layer of a stage that pairs, not only the last
    words: bool = True
    same_input: bool = False  # the teacher gets the input of its student
    public: bool = False  # strangers can reach the app

    def __post_init__(self) -> None:
        named = isinstance(self.stages, list | tuple) and all(isinstance(stage, str) for stage in self.stages)
        if self.stages is not None and not named:
            raise UserError(f'stages must be a list of names, for example ["UP-1", "DW-2"], not {self.stages!r}')
        if self.stages is not None and not self.stages:
            raise UserError("no stage is chosen, so there is nothing to record; choose at least one")

    def plans(self, cards: Sequence[ModelCard], width: int, height: int, steps: Sequence[int]) -> list[AttentionPlan]:
        """One plan per model; UserError if something cannot be recorded, with what can."""
        for card in cards:
            torch_only(card, "recording its attention")
            if card.spec is None:
                raise UserError(f"the name {card.title} does not say which layers it has; choose it by its folder")
        return pairing.planned(
            [card.spec for card in cards],
            width,
            height,
            steps,
            stages=self.stages,
            every=self.every,
            words=self.words,
            shared=self.same_input,
            budget_bytes=budget(public=self.public),
        )

    def draw(
        self,
        requests: Sequence[GenerationRequest],
        library: "Library",
        *,
        cards: Sequence[ModelCard],
        on_step: Callable,
        on_result: Callable,
        cancel: threading.Event,
    ) -> None:
        """The work of `Device.run`; its one result is the capture, with the pictures' own results."""
        from koala.attention.together import prepare
        from koala.sampling.generate import MAX_PREVIEWS

        prepared = prepare(
            requests,
            library,
            cards=cards,
            stages=self.stages,
            every=self.every,
            words=self.words,
            budget_bytes=budget(public=self.public),
            shared=self.same_input,
        )
        recorded = prepared.run(on_step, cancel=cancel, num_previews=MAX_PREVIEWS)
        on_result(0, (prepared.kept(recorded), [result for result, _ in recorded]))
