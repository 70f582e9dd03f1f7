"""A capture's work: both models draw the prompt while their attention is recorded."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from koala.attention import record
from koala.attention.figures import Side
from koala.attention.plan import AttentionPlan, ordered, size
from koala.attention.questions import Capture
from koala.registry import ModelCard
from koala.request import GenerationRequest
from koala.result import GenerationResult

if TYPE_CHECKING:
    from koala.attention.recorded import AttentionRecord
    from koala.loading import Library

Found = dict[int, tuple[GenerationResult, "AttentionRecord"]]  # by the model's position


def drawing(plans: Sequence[AttentionPlan], *, same_input: bool) -> Callable:
    """What `Session.run` shall do: one model after the other, or the student and then the teacher on its input."""

    def draw(requests: Sequence[GenerationRequest], library: "Library", *, on_step, on_result, cancel) -> None:
        models = library.get_all([r.model for r in requests])
        if same_input:
            student, _ = ordered(*(m.spec for m in models))
            own = 0 if models[0].spec == student else 1
            its = 1 - own
            result, mine, theirs = record.same_input(
                models[its],
                models[own],
                requests[own],
                plans[own],
                plans[its],
                on_step=partial(on_step, own),
                cancel=cancel,
            )
            on_result(own, (result, mine))
            on_result(its, (result, theirs))
            return
        for position, (model, request, plan) in enumerate(zip(models, requests, plans, strict=True)):
            watch = partial(on_step, position)
            on_result(position, record.capture(model, request, plan, on_step=watch, cancel=cancel))

    return draw


def capture(
    requests: Sequence[GenerationRequest],
    cards: Sequence[ModelCard],
    found: Found,
    *,
    same_input: bool,
) -> Capture:
    """Both results together, with what recording cost."""
    sides, costs = [], []
    student = ordered(*(found[k][1].spec for k in found))[0] if same_input else None
    for position, card in enumerate(cards):
        result, record_ = found[position]
        guest = same_input and record_.spec != student
        title = f"{card.title} on the student's input" if guest else card.title
        sides.append(Side(title=title, picture=result.images[0], record=record_))
        part = "" if guest else f" of a run of {result.timing.total_ms / 1000:.1f} s"
        costs.append(f"{card.title} {size(record_.bytes)}, {record_.overhead_ms:.0f} ms{part}")
    return Capture(
        prompt=requests[0].prompt,
        sides=tuple(sides),
        told=f"Recording took: {'; '.join(costs)}.",
    )
