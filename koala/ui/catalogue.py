"""The models that a visitor may choose, and the requests that a visitor may make of them."""

import dataclasses
import logging
from collections.abc import Callable, Sequence

from koala.errors import UserError
from koala.models import registry
from koala.models.cards import CARDS, ModelCard
from koala.models.export_manifest import exports_root, list_exports
from koala.models.locate import availability
from koala.request import GenerationRequest
from koala.sampling.result import folder_mark
from koala.ui.limits import check_public

log = logging.getLogger(__name__)

OWN_LICENCE = "Apache-2.0"  # of this project's code and its embedded models


def _label(card: ModelCard, here: bool) -> str:
    """A model in a list, with what a visitor must know before choosing it in brackets."""
    notes = [] if card.licence == OWN_LICENCE else [f"licence: {card.licence}"]
    notes += [] if here else ["not on this machine"]
    return f"{card.title} ({'; '.join(notes)})" if notes else card.title


def portable_name(card: ModelCard) -> str:
    """The model as another process knows it, which has not seen what this app made: its folder or its name."""
    return card.name if card.on_hub or card.embedded else card.source


class Catalogue:
    """The known models, those named at the start, and those that the app made.

    With `local` only the user of this machine can reach the app, and any folder may be named.
    """

    def __init__(self, named: Sequence[str], *, local: bool):
        self.named, self.local = tuple(named), local
        self._made: dict[str, ModelCard] = {}  # by name: folders that this app wrote
        self.before_choosing: list[Callable[[], object]] = []  # called to look for models that are new

    def card(self, name: str) -> ModelCard:
        """The card of a name. Only local visitors may name a folder that was not named at the start."""
        if name in self._made:
            return self._made[name]
        if not self.local and name not in CARDS and name not in self.named:
            raise UserError(f"unknown model; on this server the names are {', '.join((*CARDS, *self.named))}")
        return registry.find(name)

    def choices(self, *, exports: bool = False) -> list[tuple[str, str]]:
        """(label, name) of every model to choose from, with its licence unless that is this project's own.

        `exports` adds models that run on ONNX Runtime: they draw pictures, but nothing can look inside the network.
        """
        for look in self.before_choosing:
            look()
        names = dict.fromkeys((*self.named, *self._made, *CARDS, *(self._exports() if exports else ())))
        cards = [card for card in map(self.card, names) if exports or card.runtime == "torch"]
        here = {c.name: availability(c)[0] for c in cards}
        cards.sort(key=lambda c: not here[c.name])
        return [(_label(card, here[card.name]), card.name) for card in cards]

    def _exports(self) -> list[str]:
        """The exports in this machine's usual folder, for local visitors."""
        names = []
        for folder in list_exports(exports_root()) if self.local else ():
            try:
                names.append(registry.find(str(folder)).name)
            except UserError as error:  # a damaged export does not hide the others
                log.warning("%s", error)
        return names

    def add(self, card: ModelCard) -> None:
        """Offer a model that this app made, a folder, wherever models are chosen."""
        self._made[card.name] = card

    def withdraw(self, name: str) -> None:
        """No longer offer a model that this app made."""
        del self._made[name]

    def check(self, request: GenerationRequest) -> GenerationRequest:
        """The request if this visitor may make it: only local visitors may use files of this machine."""
        card = self.card(request.model)
        if not self.local:
            check_public(request, card)
        if request.lora and not self.local:
            raise UserError("a LoRA works on your own machine only: start the app there and choose the file")
        return request

    def of_picture(self, request: GenerationRequest, mark: str | None) -> GenerationRequest:
        """The request of a picture that was drawn with a folder, with the folder's path: a picture holds its mark only.

        UserError if that folder is not offered here.
        """
        if mark is None:
            return request
        offered = (*self.named, *self._made, *self._exports())
        folder = next((name for name in offered if folder_mark(name) == mark), None)
        if folder is None:
            raise UserError(
                f"this picture was drawn with a folder named {request.model!r}, which is not among the models here; "
                "start the app with that folder as one of its models, then choose the picture again"
            )
        return dataclasses.replace(request, model=folder)
