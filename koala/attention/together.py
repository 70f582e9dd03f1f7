"""Several models on one noise with their attention recorded: layers paired, one budget, free runs or one input."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from koala.attention.pairing import paired, plans
from koala.attention.plan import BUDGET, AttentionPlan, ordered
from koala.attention.record import capture, same_input
from koala.attention.recorded import AttentionRecord
from koala.compare import same_noise
from koala.generate import Step, resolve
from koala.loading import Library, LoadedModel
from koala.request import GenerationRequest, RequestError
from koala.result import GenerationResult


@dataclass(frozen=True, kw_only=True)
class Together:
    """Runs that are about to be recorded. With `shared` the teacher runs on what the student sees."""

    requests: tuple[GenerationRequest, ...]  # with every default filled in
    models: tuple[LoadedModel, ...]
    stages: tuple[str, ...]  # in which one of them has attention, in forward order
    plans: tuple[AttentionPlan, ...]
    shared: bool

    def run(self, on_step: Callable[[int, Step], None]) -> list[tuple[GenerationResult, AttentionRecord]]:
        """Every model's pictures and record, in order; under a shared input both come from the student's run."""
        if self.shared:
            own = self._student
            its = 1 - own
            result, mine, theirs = same_input(
                self.models[its],
                self.models[own],
                self.requests[own],
                self.plans[own],
                self.plans[its],
                on_step=lambda step: on_step(own, step),
                num_previews=0,
            )
            return [(result, mine if k == own else theirs) for k in range(2)]
        found = []
        for k, (request, model, plan) in enumerate(zip(self.requests, self.models, self.plans, strict=True)):
            found.append(capture(model, request, plan, on_step=lambda s, k=k: on_step(k, s), num_previews=0))
        return found

    @property
    def _student(self) -> int:
        student, _ = ordered(*(m.spec for m in self.models))
        return next(k for k, m in enumerate(self.models) if m.spec is student)

    @property
    def titles(self) -> list[str]:
        """One per model, each its own: folders of one name are told apart by what they lie in."""
        names = [m.card.title for m in self.models]
        found = [
            "/".join(m.card.source.split("/")[-2:]) if names.count(name) > 1 else name
            for m, name in zip(self.models, names, strict=True)
        ]
        if self.shared:
            its = 1 - self._student
            found[its] = f"{found[its]} on the student's input"
        return found


def prepare(
    requests: Sequence[GenerationRequest],
    library: Library,
    *,
    stages: Sequence[str] | None = None,
    every: bool = False,
    words: bool = True,
    budget_bytes: int = BUDGET,
    shared: bool = False,
) -> Together:
    """Load the models and plan what is recorded: the last layer of each stage, or every one that pairs.

    RequestError for what cannot be recorded together, before anything runs.
    """
    if shared and len(requests) != 2:
        raise RequestError("one input is shared by a student and its teacher; name these two models")
    models = library.get_all([r.model for r in requests])
    full = same_noise(requests) if len(requests) > 1 else [resolve(requests[0], models[0].card)]
    specs = [m.spec for m in models]
    rows = paired(specs, stages=stages, every=every)
    steps = [r.steps for r in full]
    if shared:
        student, _ = ordered(*specs)
        steps = [full[specs.index(student)].steps] * 2
    size = full[0].width, full[0].height
    planned = plans(specs, rows, *size, steps, cross=words, images=full[0].images, budget_bytes=budget_bytes)
    return Together(requests=tuple(full), models=tuple(models), stages=tuple(rows), plans=tuple(planned), shared=shared)
