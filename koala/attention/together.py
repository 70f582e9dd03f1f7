"""Several models on the same noise, with their attention recorded: paired layers, one budget, free or shared inputs."""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from koala.attention.capture import Capture, Side
from koala.attention.pairing import planned
from koala.attention.plan import BUDGET, AttentionPlan, ordered, size
from koala.attention.record import capture, same_input
from koala.attention.recorded import AttentionRecord
from koala.models.cards import ModelCard
from koala.models.library import Library
from koala.models.loaded import LoadedModel
from koala.models.registry import find, torch_only
from koala.request import GenerationRequest
from koala.sampling.compare import same_noise
from koala.sampling.generate import Step, resolve
from koala.sampling.result import GenerationResult
from koala.unet.specs import STAGES

Recorded = tuple[GenerationResult, AttentionRecord]


@dataclass(frozen=True, kw_only=True)
class Together:
    """Runs that are ready to be recorded. With `shared` the teacher runs on the student's inputs."""

    requests: tuple[GenerationRequest, ...]  # with every default filled in
    models: tuple[LoadedModel, ...]
    plans: tuple[AttentionPlan, ...]
    shared: bool

    def run(
        self,
        on_step: Callable[[int, Step], None],
        *,
        cancel: threading.Event | None = None,
        num_previews: int = 0,
    ) -> list[Recorded]:
        """Every model's pictures and record, in order; with a shared input both come from the student's run."""
        if self.shared:
            own = self._student
            other = 1 - own
            result, driving, following = same_input(
                self.models[other],
                self.models[own],
                self.requests[own],
                self.plans[own],
                self.plans[other],
                on_step=partial(on_step, own),
                cancel=cancel,
                num_previews=num_previews,
            )
            return [(result, driving if k == own else following) for k in range(2)]
        return [
            capture(model, request, plan, on_step=partial(on_step, k), cancel=cancel, num_previews=num_previews)
            for k, (request, model, plan) in enumerate(zip(self.requests, self.models, self.plans, strict=True))
        ]

    def kept(self, recorded: Sequence[Recorded]) -> Capture:
        """The capture of what `run` returned, with the cost of recording."""
        sides, costs = [], []
        for k, (title, (result, record)) in enumerate(zip(self.titles, recorded, strict=True)):
            sides.append(Side(title=title, picture=result.images[0], record=record))
            guest = self.shared and k != self._student
            part = "" if guest else f" of a run of {result.timing.total_ms / 1000:.1f} s"
            costs.append(f"{title} {size(record.bytes)}, {record.overhead_ms:.0f} ms{part}")
        return Capture(
            prompt=self.requests[0].prompt,
            sides=tuple(sides),
            cost=f"Recording took: {'; '.join(costs)}.",
            files=tuple(result.png() for result, _ in recorded),
        )

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that are recorded of any model, in forward order."""
        return tuple(stage for stage in STAGES if any(stage in plan.stages for plan in self.plans))

    @property
    def _student(self) -> int:
        student, _ = ordered(*(m.spec for m in self.models))
        return next(k for k, m in enumerate(self.models) if m.spec is student)

    @property
    def titles(self) -> list[str]:
        """One title per model, all different: folders of the same name get their parent folder's name too."""
        names = [m.card.title for m in self.models]
        titles = [
            "/".join(m.card.source.split("/")[-2:]) if names.count(name) > 1 else name
            for m, name in zip(self.models, names, strict=True)
        ]
        if self.shared:
            guest = 1 - self._student
            titles[guest] = f"{titles[guest]} on the student's input"
        return titles


def prepare(
    requests: Sequence[GenerationRequest],
    library: Library,
    *,
    cards: Sequence[ModelCard] | None = None,
    stages: Sequence[str] | None = None,
    every: bool = False,
    words: bool = True,
    budget_bytes: int = BUDGET,
    shared: bool = False,
) -> Together:
    """Load the models and plan what is recorded: the last layer of each stage, or every layer that pairs.

    `cards` are those of the requests' models; without them the names are looked up. UserError, before anything runs,
    for what cannot be recorded together.
    """
    cards = cards or [find(r.model) for r in requests]
    for card in cards:
        torch_only(card, "recording its attention")
    models = library.get_all(cards)
    full = same_noise(requests, cards) if len(requests) > 1 else [resolve(requests[0], models[0].card)]
    plans = planned(
        [m.spec for m in models],
        full[0].width,
        full[0].height,
        [r.steps for r in full],
        stages=stages,
        every=every,
        words=words,
        shared=shared,
        images=full[0].images,
        budget_bytes=budget_bytes,
    )
    return Together(requests=tuple(full), models=tuple(models), plans=tuple(plans), shared=shared)
