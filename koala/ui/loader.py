"""The models in memory: a background thread imports torch, so that the page comes first, then loads and downloads."""

import dataclasses
import logging
import queue
import threading
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from koala.errors import Cancelled, UserError
from koala.hardware.torch_build import Advice, advice_here
from koala.models.cards import ModelCard
from koala.models.locate import availability
from koala.request import GenerationRequest
from koala.sampling.out_of_memory import with_advice
from koala.shapes.captions import EXAMPLES
from koala.ui.catalogue import Catalogue
from koala.ui.messages import page_words, readable

if TYPE_CHECKING:
    from koala.models.library import Library

log = logging.getLogger(__name__)

# Of a model that is loaded: its state, and what is shown with it.
READY, WARMING = ("ready", ""), ("loading", "warming up")
PROMPT = EXAMPLES[0]  # of what a model draws ahead; the words do not matter


def _end(over: threading.Event, drawing: threading.Lock) -> None:
    """The process ends: no thread may still compute then, since torch would abort. It notices within one step."""
    over.set()
    drawing.acquire(timeout=10)


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """A model as the page shows it: waiting, loading, ready, or needs, with what it needs in `detail`."""

    title: str
    state: str
    detail: str = ""


class Loader:
    """Loads models of the catalogue. `first` are loaded at once and kept in memory together.

    `device` and `memory`, in bytes, are those of `Library`; `library` is one that holds its models already. With
    `warms` a model that is loaded draws two steps ahead, so that nobody's first picture waits for them; not on a device
    that is only lent for a run.
    """

    def __init__(
        self,
        catalogue: Catalogue,
        first: Sequence[str],
        device: str | None = None,
        memory: int | None = None,
        library: "Library | None" = None,
        *,
        warms: bool = True,
    ):
        self.catalogue, self.first = catalogue, tuple(first)
        self.device_type: str | None = None  # known once torch is imported
        self.advice: Advice | None = None  # on a GPU of this machine that torch does not use; known once it is imported
        self._device, self._memory, self._library = device, memory, library
        self._failure: Exception | None = None
        self._imported = threading.Event()  # or failed to be
        self._warms, self._over, self._drawing = warms, threading.Event(), threading.Lock()
        weakref.finalize(self, _end, self._over, self._drawing)
        self._downloads: set[str] = set()
        self._jobs: queue.Queue[str] = queue.Queue()
        self._states: dict[str, ModelState] = {}
        for name in self.first:
            self.want(name)

    def start(self) -> None:
        """Begin to load. Call it once the page is served."""
        threading.Thread(target=self._work, name="koala-loading", daemon=True).start()

    # --- in the background

    def want(self, name: str) -> None:
        """Load this model in the background if it is on this machine and not requested yet."""
        card = self.catalogue.card(name)
        known = self._states.get(card.name)
        if known and known.state != "needs":
            return
        here, needs = availability(card)
        if here:
            self._states[card.name] = ModelState(title=card.title, state="waiting")
            self._jobs.put(card.name)
        else:
            self._states[card.name] = ModelState(title=card.title, state="needs", detail=page_words(needs))

    def download(self, name: str) -> None:
        """Fetch this model from the hub in the background, then load it."""
        card = self.catalogue.card(name)
        if not self.catalogue.local or not card.on_hub:
            raise UserError(f"{card.name} cannot be downloaded from here")
        if self.state(card.name).state == "needs":
            self._states[card.name] = ModelState(title=card.title, state="loading", detail="download is waiting")
            self._downloads.add(card.name)
            self._jobs.put(card.name)

    def downloadable(self, names: Sequence[str]) -> list[ModelCard]:
        """Those of these models that the hub has and this machine lacks."""
        if not self.catalogue.local:
            return []
        cards = [self.catalogue.card(name) for name in names]
        return [c for c in cards if c.on_hub and self.state(c.name).state == "needs"]

    def state(self, name: str) -> ModelState:
        """A model's state; "waiting" if nobody has requested it yet. UserError for an unknown name."""
        card = self.catalogue.card(name)
        return self._states.get(card.name) or ModelState(title=card.title, state="waiting")

    def pending(self, name: str) -> bool:
        """Whether this model is about to be loaded."""
        state = self._states.get(name)
        return bool(state and state.state in ("waiting", "loading"))

    @property
    def settled(self) -> bool:
        """Whether no model is waiting or loading."""
        return not any(map(self.pending, list(self._states)))

    def _work(self) -> None:
        try:
            import koala.sampling.report  # noqa: F401  (compare, judge and torch with them)
            from koala.console import no_bars
            from koala.models.library import Library

            no_bars()
            self._library = self._library or Library(self._device, memory=self._memory)
            self.device_type = self._library.device.type
            if self.catalogue.local and self._device is None and self.device_type == "cpu":  # nobody asked for the CPU
                self.advice = advice_here()
        except Exception as error:
            self._failure = error
            for name, state in self._states.items():
                self._states[name] = dataclasses.replace(state, state="needs", detail=readable(error))
            return
        finally:
            self._imported.set()
        while True:
            cold = []
            while not cold or not self._jobs.empty():
                cold.append(self._jobs.get())
                self._load(cold[-1], then=WARMING if self._warms else READY)
            with self._drawing:
                if self._warms and not self._over.is_set():
                    self._warm_up(cold)

    def _warm_up(self, names: Sequence[str]) -> None:
        """Let these models draw two steps of their own settings, those to begin with as the pair that they are.

        Left out are large models on a CPU, which would take minutes. A failure is logged: the run itself reports it.
        """
        from koala.models.library import LARGE
        from koala.sampling.compare import warm_up_together
        from koala.sampling.generate import warm_up

        loaded = [name for name in names if self._state_is(name, WARMING)]
        try:
            library, ways = self.library(), {"cancel": self._over}
            models = {name: library.get(self.catalogue.card(name)) for name in loaded}
            cold = [n for n, model in models.items() if self.device_type != "cpu" or model.parameters < LARGE]
            pair = list(self.first) if len(self.first) > 1 and set(self.first) <= set(cold) else []
            if pair:
                asked = [GenerationRequest(model=name, prompt=PROMPT) for name in pair]
                warm_up_together(asked, library, cards=[models[name].card for name in pair], **ways)
            for name in cold:
                if name not in pair:
                    warm_up(GenerationRequest(model=name, prompt=PROMPT), models[name], **ways)
        except Cancelled:
            return
        except Exception:
            log.warning("a model could not be warmed up", exc_info=True)
        for name in loaded:
            if self._state_is(name, WARMING):
                self._states[name] = dataclasses.replace(self._states[name], state="ready", detail="")

    def _state_is(self, name: str, state: tuple[str, str]) -> bool:
        known = self._states.get(name)
        return known is not None and (known.state, known.detail) == state

    def _load(self, name: str, then: tuple[str, str] = READY) -> None:
        """Load one model and record its state, `then` where it is loaded; a failure is a state, too."""
        try:
            card = self.catalogue.card(name)
        except UserError:
            return  # removed while it waited
        title = card.title
        if not self.library().loaded(name):
            self._states[name] = ModelState(title=title, state="loading")
        try:
            if name in self._downloads:
                try:
                    self._download(card)
                finally:
                    self._downloads.discard(name)
            together = [c for c in map(self.catalogue.card, self.first) if availability(c)[0]]
            self.library().get(card, beside=together if name in self.first else ())
        except Exception as error:
            self._states[name] = ModelState(title=title, state="needs", detail=readable(error))
        else:
            self._states[name] = ModelState(title=title, state=then[0], detail=then[1])

    def _download(self, card: ModelCard) -> None:
        from koala.models.downloads import fetch

        def progress(done: int, total: int, file: str) -> None:
            detail = f"downloading, {done / 1e9:.2f} of {total / 1e9:.2f} GB"
            self._states[card.name] = ModelState(title=card.title, state="loading", detail=detail)

        fetch(card, progress, tiny_vae=card.tiny_vae is not None)
        self._states[card.name] = ModelState(title=card.title, state="loading")

    # --- for a run

    @property
    def imported(self) -> bool:
        """Whether torch and its libraries are imported, so that a handler may use them without waiting."""
        return self._imported.is_set() and self._failure is None

    def library(self) -> "Library":
        """The models in memory; waits until torch is imported."""
        self._imported.wait()
        if self._failure:
            raise self._failure
        return self._library

    def missing(self, names: Sequence[str]) -> list[str]:
        """The titles of those of these models that are not in memory yet."""
        imported = self._imported.is_set()
        states = [self.state(name) for name in names]
        return list(dict.fromkeys(s.title for s in states if not imported or s.state != "ready"))

    def fetch(self, names: Sequence[str]) -> None:
        """Load these models now, together; raises the error of the first that cannot be loaded."""
        library = self.library()
        cards = [self.catalogue.card(name) for name in names]
        for card in cards:
            if card.name in self._downloads:
                raise UserError(f"{card.title} is still being downloaded; wait until it is ready, or choose another")
            if self.state(card.name).state != "ready":
                self._load(card.name)
            library.get(card, beside=cards)

    def forget(self, name: str) -> None:
        """Take a model out of memory, before its folder is deleted."""
        self._states.pop(name, None)
        if self._library:
            self._library.forget(name)

    def explained(
        self, error: Exception, requests: Sequence[GenerationRequest], cards: Sequence[ModelCard]
    ) -> Exception:
        """The error of a run of these requests. Out of memory says what helps, after the memory was freed."""
        return with_advice(error, requests, self._library, cards) if requests else error
