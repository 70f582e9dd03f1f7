"""Runs on the device: wait in line, load the models, work in a thread, and report to the page as it happens.

Gradio closes generators on its event loop, where every visitor would wait. So these do not wait for the thread that
works: it keeps the device until it notices, within one step, that nobody wants its result any more.
"""

import contextvars
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager
from functools import partial
from typing import TYPE_CHECKING

from koala.errors import Cancelled, UserError
from koala.models.cards import ModelCard
from koala.request import GenerationRequest
from koala.ui.catalogue import Catalogue
from koala.ui.line import Line, Ticket, Work
from koala.ui.loader import Loader
from koala.ui.under_way import HEARTBEAT, Life, Update, gather

if TYPE_CHECKING:
    from koala.models.library import Library
    from koala.models.loaded import LoadedModel
    from koala.ui.visitors import Share

log = logging.getLogger(__name__)

_END = object()  # the last event of a thread


def drawing(requests: Sequence[GenerationRequest], cards: Sequence[ModelCard], kind: str = "drawing") -> Work:
    """The work of these requests: pixels times steps times the U-Net's parameters, doubled by guidance."""
    return Work(kind=kind, amount=sum(map(_amount, requests, cards)))


def _amount(request: GenerationRequest, card: ModelCard) -> float:
    guided = (card.guidance if request.guidance is None else request.guidance) > 1
    pixels = (request.width or card.width) * (request.height or card.height) * request.images
    return pixels * (request.steps or card.steps) * (card.parameters or 1) * (1 + guided) / 1e12


def plain_draw(
    requests: Sequence[GenerationRequest],
    library: "Library",
    *,
    cards: Sequence[ModelCard],
    on_step,
    on_result,
    cancel,
) -> None:
    """One model alone, or several on the same noise, with a preview of every step, or of 32 of more; the callbacks get
    the request's position."""
    from koala.sampling.compare import compare
    from koala.sampling.generate import generate
    from koala.sampling.previews import EVERY

    shown = {"num_previews": EVERY, "small_previews": True}
    if len(requests) == 1:
        model = library.get(cards[0])
        on_result(0, generate(requests[0], model, on_step=lambda s: on_step(0, s), cancel=cancel, **shown))
    else:
        compare(requests, library, cards=cards, on_step=on_step, on_result=on_result, cancel=cancel, **shown)


class Device:
    """Whatever wants the device waits in its line. `wrap` changes how a run draws, draw -> draw, see `Session`."""

    def __init__(self, catalogue: Catalogue, loader: Loader, wrap: Callable[[Callable], Callable] | None = None):
        self.line = Line()
        self.share: Share | None = None  # of each visitor, if strangers can reach the app
        self.around_runs: list[Callable[[], AbstractContextManager]] = []  # held while anything is drawn
        self._catalogue, self._loader, self._wrap = catalogue, loader, wrap
        self._used: list[tuple[str, ...]] = []  # the models of every run under way

    def visitor(self, request) -> str:
        """Who asks, if each visitor has a share; on one's own machine nobody in particular."""
        return self.share.who(request) if self.share else ""

    def lent_too_short(self, what: str) -> str:
        """On ZeroGPU, which lends a GPU for one drawing at a time: why it cannot do `what`. Elsewhere empty."""
        return (
            f"{what} needs a GPU for longer than this server is lent one; start the app at home" if self._wrap else ""
        )

    def require_own(self, what: str) -> None:
        """UserError on ZeroGPU: `what` would hold the GPU for longer than one drawing."""
        if why_not := self.lent_too_short(what):
            raise UserError(why_not)

    def model(self, name: str) -> "LoadedModel":
        """A model in memory, loaded now if necessary. UserError if that fails, and on ZeroGPU."""
        self.require_own("this measurement")
        self._loader.fetch([name])
        return self._loader.library().get(self._catalogue.card(name))

    @contextmanager
    def using(self, *names: str) -> Iterator[None]:
        """These models are in use within the context."""
        self._used.append(names)
        try:
            with ExitStack() as held:
                for around in self.around_runs:
                    held.enter_context(around())
                yield
        finally:
            self._used.remove(names)

    def in_use(self, name: str) -> bool:
        """Whether a run uses this model, or it is about to be loaded."""
        return any(name in names for names in self._used) or self._loader.pending(name)

    def run(
        self,
        requests: Sequence[GenerationRequest],
        life: Life | None = None,
        draw: Callable | None = None,
        *,
        visitor: str = "",
        kind: str = "drawing",
    ) -> Iterator[Update]:
        """One model, or several on the same noise, as a stream of updates; outdated previews are dropped.

        Closing the iterator ends the run within one step, as does `life.stop()`, which raises Cancelled here at once.
        Another `draw` with the arguments of `plain_draw` may have results of its own kind; `kind` names it, for the
        forecast of how long such a run takes.
        """
        cards = [self._catalogue.card(r.model) for r in requests]
        life, draw = life or Life(), draw or plain_draw
        draw = self._wrap(draw) if self._wrap else draw

        amounts = list(map(_amount, requests, cards))
        done = [0.0] * len(requests)  # of each model's steps, 0 to 1

        def do(library: "Library", ticket: Ticket) -> None:
            def on_step(position: int, step) -> None:
                done[position] = step.index / step.total
                ticket.done = sum(a * part for a, part in zip(amounts, done, strict=True)) / sum(amounts)
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
        with closing(self.turn(names, do, life, visitor=visitor, work=work, requests=requests)) as events:
            for news in events:
                yield gather(news)

    def turn(
        self,
        models: Sequence[str],
        do: Callable[["Library", Ticket], object],
        life: Life,
        *,
        visitor: str,
        work: Work,
        requests: Sequence[GenerationRequest] = (),
    ) -> Iterator[list]:
        """The events of a run, at least twice a second: status texts, then what `do` tells `life`.

        `do(library, ticket)` has the device and finds its models in memory; it ends soon after `life.over` is set. Its
        errors are raised here, out of memory explained by the `requests`, and Cancelled once the visitor stopped it.
        """
        loader, cards = self._loader, [self._catalogue.card(r.model) for r in requests]
        explained = partial(loader.explained, requests=requests, cards=cards)
        try:
            with ExitStack() as held:
                held.enter_context(self.using(*models))
                ticket = held.enter_context(self.line.join(visitor, work, life.wake))
                while not ticket.called:
                    yield [ticket.status]
                    life.news(HEARTBEAT)
                if loader.missing(models):
                    # in a thread that holds nothing: after a stop it goes on to load what others want as well
                    yield self._loading(models)
                    _thread("koala-fetch", lambda: loader.fetch(models), life, explained)
                    for _ in _news(life):
                        yield self._loading(models)
                yield ["Starting"]

                def working() -> None:
                    ticket.begin()
                    do(loader.library(), ticket)
                    ticket.finished = True

                _thread("koala-run", working, life, explained, held)
            yield from _news(life)
        finally:
            life.end()

    def _loading(self, models: Sequence[str]) -> list[str]:
        titles = self._loader.missing(models)
        return [f"Loading {' and '.join(titles)}"] if titles else []


def _thread(
    name: str,
    task: Callable[[], object],
    life: Life,
    explained: Callable[[Exception], Exception],
    held: ExitStack | None = None,
) -> None:
    """Do the task in a thread, which takes over and releases what is held; its last event says how it ended."""
    resources = ExitStack() if held is None else held.pop_all()

    def work() -> None:
        ended: object = RuntimeError(f"the thread {name} ended without a word")
        try:
            with resources:
                try:
                    task()
                    ended = _END
                except Exception as error:
                    if life.over.is_set() and not isinstance(error, Cancelled | UserError):
                        log.warning("a run failed that nobody waited for any more", exc_info=error)
                    ended = explained(error)
        finally:
            life.tell(ended)

    visit = contextvars.copy_context()  # with the visitor, for whom ZeroGPU asks
    try:
        threading.Thread(target=visit.run, args=(work,), name=name, daemon=True).start()
    except BaseException:
        resources.close()
        raise


def _news(life: Life) -> Iterator[list]:
    """The events of the thread until it ends; its failure is raised."""
    while True:
        news = life.news(HEARTBEAT)
        last = news[-1] if news else None
        ended = last is _END or isinstance(last, Exception)
        yield news[:-1] if ended else news
        if isinstance(last, Exception):
            raise last
        if ended:
            return
