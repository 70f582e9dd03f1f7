"""The bridge between Gradio's handlers and the core: models that load in the background, runs that can be stopped.

torch is imported by the loading thread, so that the page is there first.
"""

import dataclasses
import logging
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

from koala.errors import UserError
from koala.hardware.torch_build import Advice, advice_here
from koala.models import registry
from koala.models.cards import CARDS, ModelCard
from koala.models.export_manifest import exports_root, list_exports
from koala.models.locate import availability
from koala.request import GenerationRequest
from koala.sampling.out_of_memory import told
from koala.sampling.result import folder_mark
from koala.ui import turns
from koala.ui.limits import check_public
from koala.ui.line import Line
from koala.ui.messages import readable
from koala.ui.under_way import Life
from koala.ui.updates import Update

if TYPE_CHECKING:
    from koala.models.library import Library
    from koala.models.loaded import LoadedModel
    from koala.ui.visitors import Share

log = logging.getLogger(__name__)

EMBEDDED_PAIR = ("tiny-sdxl", "tiny-koala-700m")
REAL_PAIRS = (("sdxl-base", "koala-700m"), ("sdxl-base", "koala-lightning-700m"))
OWN_LICENCE = "Apache-2.0"  # of this project: its code and its embedded models


@dataclass(frozen=True, kw_only=True)
class ModelState:
    """A model as the page shows it: waiting, loading, ready, or needs (and `detail` says what)."""

    title: str
    state: str
    detail: str = ""


def _best_pair(device: str | None) -> tuple[str, str]:
    """The real models where they are on this machine and a GPU can run them, else the embedded ones."""
    for pair in REAL_PAIRS:
        if all(availability(CARDS[name])[0] for name in pair):
            from koala.hardware.device import best_device

            if best_device(device).type != "cpu":
                return pair
    return EMBEDDED_PAIR


def _label(card: ModelCard, here: bool) -> str:
    """A model in a list; what one must know before choosing it stands in brackets."""
    notes = [] if card.licence == OWN_LICENCE else [f"licence: {card.licence}"]
    notes += [] if here else ["not on this machine"]
    return f"{card.title} ({'; '.join(notes)})" if notes else card.title


def spoken(card: ModelCard) -> str:
    """The model for another process, which knows nothing of what this app made: its folder, or its name."""
    return card.name if card.on_hub or card.embedded else card.source


class Session:
    """One app's models. `local` says that only this machine's user can reach it, who may name any folder.

    `exports` lets strangers, too, export the embedded models. `library` is one that holds its models already; `wrap`
    changes how a run draws, draw -> draw, where the device is not this process's own.
    """

    def __init__(
        self,
        models: Sequence[str] | None = None,
        device: str | None = None,
        *,
        memory: int | None = None,
        local: bool = True,
        exports: bool = False,
        library: "Library | None" = None,
        wrap: Callable[[Callable], Callable] | None = None,
    ):
        self.named = tuple(registry.find(name).name for name in models or ())
        self.device, self.memory = device, memory
        if device:
            from koala.hardware.device import best_device

            best_device(device)  # a device that is not here is an error of the start, not of the first run
        self.local, self.exports = local, exports
        self.models = self.named or _best_pair(device)
        self._made: dict[str, ModelCard] = {}  # by name: folders that this app wrote itself
        self.before_choosing: list[Callable[[], object]] = []  # who looks for models that came meanwhile
        self.device_type: str | None = None  # known once torch is there
        self.advice: Advice | None = None  # on a card of this machine that torch leaves unused; known with it
        self.line = Line()  # of whatever wants the device
        self.share: Share | None = None  # of each visitor, where strangers reach the app
        self.around_runs: list[Callable[[], AbstractContextManager]] = []  # what is held while anything is drawn
        self._used: list[tuple[str, ...]] = []  # the models of every run under way
        self._library, self._wrap = library, wrap
        self._failure: Exception | None = None
        self._there = threading.Event()
        self.loras: dict[str, str] = {}  # SHA-256 -> file of every LoRA that has run
        self._downloads: set[str] = set()
        self._jobs: queue.Queue[str] = queue.Queue()
        self._states: dict[str, ModelState] = {}
        for name in self.models:
            self.want(name)

    # --- models

    def card(self, name: str) -> ModelCard:
        """The card of a name. Folders that were not named at the start are for local visitors alone."""
        if name in self._made:
            return self._made[name]
        if not self.local and name not in CARDS and name not in self.named:
            raise UserError(f"unknown model; on this server the names are {', '.join((*CARDS, *self.named))}")
        return registry.find(name)

    def of_picture(self, request: GenerationRequest, mark: str | None) -> GenerationRequest:
        """The request of a picture that was drawn with a folder, by the folder's place on this machine: pictures name
        it without. UserError where that folder is not offered here."""
        if mark is None:
            return request
        offered = (*self.named, *self._made, *self._exports())
        found = next((name for name in offered if folder_mark(name) == mark), None)
        if found is None:
            raise UserError(
                f"this picture was drawn with a folder named {request.model!r}, which is not among the models here; "
                "start the app with --models and that folder, then choose the picture again"
            )
        return dataclasses.replace(request, model=found)

    def check(self, request: GenerationRequest) -> GenerationRequest:
        """The request, where this visitor may make it: files of this machine are for local visitors alone."""
        card = self.card(request.model)
        if not self.local:
            check_public(request, card)
        if request.lora and not self.local:
            raise UserError("a LoRA works on your own machine only: start the app there and choose the file")
        return request

    def choices(self, *, exports: bool = False) -> list[tuple[str, str]]:
        """(label, name) of every model to choose from, with its licence where that is not this project's own.

        `exports` adds what runs on ONNX Runtime, for who wants pictures alone and does not look into the network.
        """
        for look in self.before_choosing:
            look()
        names = dict.fromkeys((*self.named, *self._made, *CARDS, *(self._exports() if exports else ())))
        cards = [card for card in map(self.card, names) if exports or card.runtime == "torch"]
        here = {c.name: availability(c)[0] for c in cards}
        cards.sort(key=lambda c: not here[c.name])
        return [(_label(card, here[card.name]), card.name) for card in cards]

    def _exports(self) -> list[str]:
        """The exports in this machine's usual place, for local visitors."""
        found = []
        for folder in list_exports(exports_root()) if self.local else ():
            try:
                found.append(registry.find(str(folder)).name)
            except UserError as error:  # one that is damaged keeps nobody from the others
                log.warning("%s", error)
        return found

    def add(self, card: ModelCard) -> None:
        """Offer a model that this app made, a folder, wherever models are chosen."""
        self._made[card.name] = card

    def remove(self, name: str) -> None:
        """Take back a model that this app made, before its folder goes."""
        del self._made[name]
        self.forget(name)

    def forget(self, name: str) -> None:
        """Take a model out of memory, before its folder goes."""
        self._states.pop(name, None)
        if self._library:
            self._library.forget(name)

    @contextmanager
    def using(self, *names: str) -> Iterator[None]:
        """Meanwhile these models are in use."""
        self._used.append(names)
        try:
            with ExitStack() as held:
                for around in self.around_runs:
                    held.enter_context(around())
                yield
        finally:
            self._used.remove(names)

    def in_use(self, name: str) -> bool:
        """Whether a run has this model, or it is about to be loaded."""
        state = self._states.get(name)
        return any(name in names for names in self._used) or bool(state and state.state in ("waiting", "loading"))

    def want(self, name: str) -> None:
        """Load this model in the background if it is here and not yet wanted."""
        card = self.card(name)
        known = self._states.get(card.name)
        if known and known.state != "needs":
            return
        here, needs = availability(card)
        state = ModelState(title=card.title, state="waiting" if here else "needs", detail="" if here else needs)
        self._states[card.name] = state
        if here:
            self._jobs.put(card.name)

    def download(self, name: str) -> None:
        """Fetch this model from the hub in the background, then load it."""
        card = self.card(name)
        if not self.local or not card.on_hub:
            raise UserError(f"{card.name} cannot be downloaded from here")
        if self.state(card.name).state == "needs":
            self._states[card.name] = ModelState(title=card.title, state="loading", detail="download is waiting")
            self._downloads.add(card.name)
            self._jobs.put(card.name)

    def downloadable(self, names: Sequence[str]) -> list[ModelCard]:
        """Those of these models that the hub has and this machine lacks."""
        if not self.local:
            return []
        cards = [self.card(name) for name in names if name in CARDS or self.local]
        return [c for c in cards if c.on_hub and self.state(c.name).state == "needs"]

    def state(self, name: str) -> ModelState:
        """How a model stands; waiting, too, where nobody has wanted it yet. UserError for an unknown name."""
        card = self.card(name)
        return self._states.get(card.name) or ModelState(title=card.title, state="waiting")

    @property
    def settled(self) -> bool:
        """Nothing is waiting or loading any more."""
        return not any(s.state in ("waiting", "loading") for s in self._states.values())

    @property
    def note(self) -> str:
        """One friendly line on why these models; empty where the models were chosen or torch is not there yet."""
        if self.named or self.device_type is None or self.models != EMBEDDED_PAIR:
            return ""
        if self.advice:
            why = "The GPU here is not used"
        else:
            why = "No GPU here" if self.device_type == "cpu" else "The real checkpoints are not on this machine"
        return f"{why}, so the app runs its embedded models: tiny networks that draw coloured shapes in seconds."

    def start(self) -> "Session":
        """Begin to load. Call it once the page is served."""
        threading.Thread(target=self._load, name="koala-loading", daemon=True).start()
        return self

    @property
    def imported(self) -> bool:
        """Whether torch and its libraries are there, so that a handler may use them without waiting."""
        return self._there.is_set() and self._failure is None

    def library(self) -> "Library":
        """The models in memory; waits for torch where it is still being imported."""
        self._there.wait()
        if self._failure:
            raise self._failure
        return self._library

    def lent_too_short(self, what: str) -> str:
        """On ZeroGPU, which lends a GPU to one drawing at a time: why it cannot do `what`. Elsewhere nothing."""
        return (
            f"{what} needs a GPU for longer than this server is lent one; start the app at home" if self._wrap else ""
        )

    def require_own_device(self, what: str) -> None:
        """UserError on ZeroGPU: `what` would hold the GPU for longer than one drawing."""
        if why_not := self.lent_too_short(what):
            raise UserError(why_not)

    def model(self, name: str) -> "LoadedModel":
        """A model in memory, loaded now if it was not. Raises UserError with the remedy."""
        self.require_own_device("this measurement")
        card = self.card(name)
        self._ensure(card)
        return self.library().get(card)

    def _ensure(self, card: ModelCard) -> None:
        """Load this model for a run that begins, unless its download is under way."""
        if card.name in self._downloads:
            raise UserError(f"{card.title} is still being downloaded; wait until it is ready, or choose another")
        if self.state(card.name).state != "ready":
            self._fetch(card.name)

    def loading(self, names: Sequence[str]) -> list[str]:
        """The titles of those of these models that are not yet in memory."""
        there = self._there.is_set()
        states = [self.state(name) for name in names]
        return list(dict.fromkeys(s.title for s in states if not there or s.state != "ready"))

    def fetch(self, names: Sequence[str]) -> None:
        """Have these models in memory; the error of the first that cannot be loaded."""
        library = self.library()
        cards = [self.card(name) for name in names]
        for card in cards:
            self._ensure(card)
            library.get(card, beside=cards)

    def explained(
        self, error: Exception, requests: Sequence[GenerationRequest], cards: Sequence[ModelCard]
    ) -> Exception:
        """The error of a run of these requests; a lack of memory with what helps, after the memory was freed."""
        return told(error, requests, self._library, cards) if requests else error

    def _load(self) -> None:
        try:
            import koala.sampling.report  # noqa: F401  (compare, judge and torch with them)
            from koala.console import no_bars
            from koala.models.library import Library

            no_bars()
            self._library = self._library or Library(self.device, memory=self.memory)
            self.device_type = self._library.device.type
            if self.local and self.device is None and self.device_type == "cpu":  # nobody asked for the CPU
                self.advice = advice_here()
        except Exception as error:
            self._failure = error
            for name, state in self._states.items():
                self._states[name] = dataclasses.replace(state, state="needs", detail=readable(error))
            return
        finally:
            self._there.set()
        while True:
            name = self._jobs.get()
            self._fetch(name)

    def _fetch(self, name: str) -> None:
        """Load one model and keep its state; a failure is a state, too."""
        try:
            card = self.card(name)
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
            pair = [c for c in map(self.card, self.models) if availability(c)[0]]  # one that is damaged is not
            self.library().get(card, beside=pair if name in self.models else ())
        except Exception as error:
            self._states[name] = ModelState(title=title, state="needs", detail=readable(error))
        else:
            self._states[name] = ModelState(title=title, state="ready")

    def _download(self, card: ModelCard) -> None:
        from koala.models.downloads import fetch

        def progress(done: int, total: int, file: str) -> None:
            told = f"downloading, {done / 1e9:.2f} of {total / 1e9:.2f} GB"
            self._states[card.name] = ModelState(title=card.title, state="loading", detail=told)

        fetch(card, progress, tiny_vae=card.tiny_vae is not None)
        self._states[card.name] = ModelState(title=card.title, state="loading")

    # --- runs

    def run(
        self,
        requests: Sequence[GenerationRequest],
        life: Life | None = None,
        draw: Callable | None = None,
        *,
        visitor: str = "",
        kind: str = "drawing",
    ) -> Iterator[Update]:
        """One model, or several on one noise, as a stream of updates; previews that came too late are dropped.

        Closing the iterator ends the run within one step, as does `life.stop()`, which raises Cancelled here at once.
        `draw` does the work in another way than plain generation: it has `turns.draw`'s arguments, its results are of
        its own kind, and `kind` names it, for the forecast of how long such a run takes.
        """
        draw = draw or turns.draw
        draw = self._wrap(draw) if self._wrap else draw
        return turns.run(self, requests, life or Life(), draw, visitor=visitor, kind=kind)

    def visitor(self, request) -> str:
        """Who asks, where visitors have a share each; on one's own machine they are nobody in particular."""
        return self.share.who(request) if self.share else ""
