"""One app: which models may be chosen, which are in memory, and who has the device."""

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING

from koala.models import registry
from koala.models.cards import CARDS, ModelCard
from koala.models.locate import availability
from koala.ui.catalogue import Catalogue
from koala.ui.device import Device
from koala.ui.loader import Loader

if TYPE_CHECKING:
    from koala.models.library import Library

REAL_PAIRS = (("sdxl-base", "koala-lightning-700m"), ("sdxl-base", "koala-700m"))


def embedded_pair(cards: Iterable[ModelCard] = CARDS.values()) -> tuple[str, str]:
    """The embedded models to begin with: a guided teacher, and the smallest student of fewest steps.

    Only models whose files are here.
    """
    embedded = [card for card in cards if card.embedded and availability(card)[0]]
    teacher = max((card for card in embedded if card.teacher is None), key=lambda card: (card.guidance > 1, card.steps))
    student = min((card for card in embedded if card.teacher), key=lambda card: (card.steps, card.parameters))
    return teacher.name, student.name


def _best_pair(device: str | None) -> tuple[str, str]:
    """The real models if they are on this machine and a GPU can run them, else the embedded ones."""
    for pair in REAL_PAIRS:
        if all(availability(CARDS[name])[0] for name in pair):
            from koala.hardware.device import best_device

            if best_device(device).type != "cpu":
                return pair
    return embedded_pair()


class Session:
    """One app. With `local` only the user of this machine can reach it, and any folder may be named.

    `models` are the two to begin with; `memory` is in bytes. With `exports` strangers may export the embedded models.
    `library` is one that holds its models already; `wrap` changes how a run draws, draw -> draw, on a device that does
    not belong to this process.
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
        named = tuple(registry.find(name).name for name in models or ())
        if device:
            from koala.hardware.device import best_device

            best_device(device)  # a device that is missing is an error of the start, not of the first run
        self.local, self.exports = local, exports
        self.models = named or _best_pair(device)
        self.catalogue = Catalogue(named, local=local)
        self.loader = Loader(self.catalogue, self.models, device, memory, library, warms=wrap is None)
        self.device = Device(self.catalogue, self.loader, wrap)
        self.loras: dict[str, str] = {}  # SHA-256 -> file of every LoRA that was used

    def start(self) -> "Session":
        """Begin to load. Call it once the page is served."""
        self.loader.start()
        return self

    def remove(self, name: str) -> None:
        """Withdraw a model that this app made, before its folder is deleted."""
        self.catalogue.withdraw(name)
        self.loader.forget(name)

    @property
    def note(self) -> str:
        """One friendly line on why these models; empty if they were named, and until torch is imported."""
        device_type = self.loader.device_type
        if self.catalogue.named or device_type is None or not all(CARDS[name].embedded for name in self.models):
            return ""
        if self.loader.advice:
            why = "The GPU here is not used"
        else:
            why = "No GPU here" if device_type == "cpu" else "The real checkpoints are not on this machine"
        return f"{why}, so the app runs its embedded models: tiny networks that draw coloured shapes in seconds."
