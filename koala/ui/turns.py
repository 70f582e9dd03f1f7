"""A turn on the device: wait in the line, load the models, work in a thread, and tell the page all of it as it comes.

Gradio closes generators on its event loop, where every visitor would wait. So these do not wait for the thread that
works: it keeps the device until it has noticed that nobody wants its result any more, within one step.
"""

import contextvars
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing
from functools import partial
from typing import TYPE_CHECKING, Protocol

from koala.errors import Cancelled, UserError
from koala.models.cards import ModelCard
from koala.request import GenerationRequest
from koala.ui.line import Line, Ticket, Work
from koala.ui.under_way import Life
from koala.ui.updates import HEARTBEAT, Update, gather

if TYPE_CHECKING:
    from koala.models.library import Library

log = logging.getLogger(__name__)

_END = object()  # the last that a thread tells


class Host(Protocol):
    """What a turn asks of the session: its models, its line, and words for what went wrong."""

    line: Line

    def library(self) -> "Library":
        """The models in memory."""

    def card(self, name: str) -> ModelCard:
        """Of a model of this session."""

    def state(self, name: str) -> object:
        """How a model stands; it has a `title`."""

    def loading(self, names: Sequence[str]) -> list[str]:
        """The titles of those of these models that are not yet in memory."""

    def fetch(self, names: Sequence[str]) -> None:
        """Have these models in memory; the error of the first that cannot be loaded."""

    def using(self, *names: str) -> AbstractContextManager[None]:
        """Meanwhile these models are in use."""

    def explained(
        self, error: Exception, requests: Sequence[GenerationRequest], cards: Sequence[ModelCard]
    ) -> Exception:
        """The error of a run of these requests, with what helps."""


def drawing(requests: Sequence[GenerationRequest], cards: Sequence[ModelCard], kind: str = "drawing") -> Work:
    """The work of these requests: pixels times steps times the U-Net's parameters, with guidance twice."""
    amount = 0.0
    for request, card in zip(requests, cards, strict=True):
        guided = (card.guidance if request.guidance is None else request.guidance) > 1
        pixels = (request.width or card.width) * (request.height or card.height) * request.images
        amount += pixels * (request.steps or card.steps) * (card.parameters or 1) * (1 + guided) / 1e12
    return Work(kind=kind, amount=amount)


def turn(
    session: Host,
    models: Sequence[str],
    do: Callable[["Library", Ticket], object],
    life: Life,
    *,
    visitor: str,
    work: Work,
    requests: Sequence[GenerationRequest] = (),
) -> Iterator[list]:
    """Everything that is told of a run, at least twice a second: texts of where it stands, then what `do` tells `life`.

    `do(library, ticket)` has the device and finds its models in memory; it ends soon after `life.over` is set. Its
    errors are raised here, a lack of memory explained by the `requests`, and Cancelled once the visitor stopped it.
    """
    explained = partial(session.explained, requests=requests, cards=[session.card(r.model) for r in requests])
    try:
        with ExitStack() as held:
            held.enter_context(session.using(*models))
            ticket = held.enter_context(session.line.join(visitor, work, life.wake))
            while not ticket.called:
                yield [ticket.said]
                life.news(HEARTBEAT)
            if session.loading(models):
                # in a thread that holds nothing: a stop leaves it to load what others want as well
                yield _loading(session, models)
                _thread("koala-fetch", lambda: session.fetch(models), life, explained)
                for _ in _news(life):
                    yield _loading(session, models)
            yield [f"{session.state(models[0]).title}: starting"]

            def working() -> None:
                ticket.begin()
                do(session.library(), ticket)
                ticket.finished = True

            _thread("koala-run", working, life, explained, held)
        yield from _news(life)
    finally:
        life.end()


def _loading(session: Host, models: Sequence[str]) -> list[str]:
    waits = session.loading(models)
    return [f"Loading {' and '.join(waits)}"] if waits else []


def _thread(
    name: str,
    task: Callable[[], object],
    life: Life,
    explained: Callable[[Exception], Exception],
    held: ExitStack | None = None,
) -> None:
    """Do the task in a thread, which takes over what is held and lets go of it; the last news is how it ended."""
    mine = ExitStack() if held is None else held.pop_all()

    def work() -> None:
        ended: object = RuntimeError(f"the thread {name} ended without a word")
        try:
            with mine:
                try:
                    task()
                    ended = _END
                except Exception as error:
                    if life.over.is_set() and not isinstance(error, Cancelled | UserError):
                        log.warning("a run failed that nobody waited for any more", exc_info=error)
                    ended = explained(error)
        finally:
            life.tell(ended)

    visit = contextvars.copy_context()  # whose visitor it is: ZeroGPU asks
    try:
        threading.Thread(target=visit.run, args=(work,), name=name, daemon=True).start()
    except BaseException:
        mine.close()
        raise


def _news(life: Life) -> Iterator[list]:
    """What the thread under way tells, until it has ended; its failure is raised."""
    while True:
        news = life.news(HEARTBEAT)
        last = news[-1] if news else None
        ended = last is _END or isinstance(last, Exception)
        yield news[:-1] if ended else news
        if isinstance(last, Exception):
            raise last
        if ended:
            return


def run(
    session: Host,
    requests: Sequence[GenerationRequest],
    life: Life,
    draw: Callable,
    *,
    visitor: str,
    kind: str,
) -> Iterator[Update]:
    """`turn` for requests that `draw` draws, as updates."""
    cards = [session.card(r.model) for r in requests]

    def do(library: "Library", ticket: Ticket) -> None:
        def on_step(position: int, step) -> None:
            ticket.done = (position + step.index / step.total) / len(requests)
            life.tell(("step", position, step))

        draw(
            requests,
            library,
            cards=cards,
            on_step=on_step,
            on_result=lambda position, result: life.tell(("result", position, result)),
            cancel=life.over,
        )

    names, work = [card.name for card in cards], drawing(requests, cards, kind)
    with closing(turn(session, names, do, life, visitor=visitor, work=work, requests=requests)) as told:
        for news in told:
            yield gather(news)


def draw(
    requests: Sequence[GenerationRequest],
    library: "Library",
    *,
    cards: Sequence[ModelCard],
    on_step,
    on_result,
    cancel,
) -> None:
    """One model alone, or several on one noise; the callbacks get the request's position."""
    from koala.sampling.compare import compare
    from koala.sampling.generate import generate

    if len(requests) == 1:
        model = library.get(cards[0])
        on_result(0, generate(requests[0], model, on_step=lambda s: on_step(0, s), cancel=cancel))
    else:
        compare(requests, library, cards=cards, on_step=on_step, on_result=on_result, cancel=cancel)
