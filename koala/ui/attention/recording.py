"""What a capture of the app records, and how much a visitor may keep. Without torch, so that the page can use it."""

import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from koala.attention import pairing
from koala.attention.plan import BUDGET, AttentionPlan
from koala.errors import UserError
from koala.models.cards import ModelCard
from koala.models.registry import torch_only
from koala.request import MAX_SEED, GenerationRequest
from koala.sampling.resolve import same_noise
from koala.ui.catalogue import Catalogue
from koala.ui.settings import whole

if TYPE_CHECKING:
    from koala.attention.capture import Capture
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


OWN, SAME = "own", "same"  # the input of the teacher


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The values of the page's fields."""

    prompt: str
    models: tuple[str, str]
    seed: str
    random: bool
    steps: tuple[int, int]
    guidance: tuple[float, float]
    width: int | None
    height: int | None
    stages: list[str]
    every: bool
    words: bool
    inputs: str

    @classmethod
    def of(cls, values: Sequence) -> "Asked":
        """From the values of `Attention.fields`, in their order."""
        prompt, first, second, seed, random, *rest, width, height, stages, every, words, inputs = values
        return cls(
            prompt=prompt,
            models=(first, second),
            seed=seed,
            random=random,
            steps=tuple(rest[:2]),
            guidance=tuple(rest[2:]),
            width=width,
            height=height,
            stages=stages,
            every=every,
            words=words,
            inputs=inputs,
        )

    def requests(self, catalogue: Catalogue) -> list[GenerationRequest]:
        """One request per model, alike in everything else; UserError names the first field that cannot work."""
        seed = str(secrets.randbelow(MAX_SEED + 1)) if self.random else self.seed
        if seed in (None, ""):
            raise UserError("the seed is empty; type any whole number, or tick Random")
        alike = {"prompt": self.prompt or "", "seed": whole(seed)}
        alike |= {"width": whole(self.width), "height": whole(self.height)}
        requests = [
            GenerationRequest(model=name or "", steps=whole(steps), guidance=guidance, **alike)
            for name, steps, guidance in zip(self.models, self.steps, self.guidance, strict=True)
        ]
        requests = [catalogue.check(request) for request in requests]
        return same_noise(requests, [catalogue.card(request.model) for request in requests])

    def recording(self, *, public: bool) -> Recording:
        """What is kept of both models; UserError if no stage is chosen."""
        return Recording(
            stages=self.stages,
            every=self.every,
            words=self.words,
            same_input=self.inputs == SAME,
            public=public,
        )

    def plans(self, catalogue: Catalogue) -> list[AttentionPlan]:
        """What is recorded of each model."""
        cards = [catalogue.card(name or "") for name in self.models]
        width, height = whole(self.width) or cards[0].width, whole(self.height) or cards[0].height
        steps = [whole(steps) for steps in self.steps]
        return self.recording(public=not catalogue.local).plans(cards, width, height, steps)


LIMIT = 4 * 10**9  # bytes of all captures together
PUBLIC_LIMIT = 10**9  # in a public app


class Store:
    """Captures under ids that cannot be guessed. Safe to use from several threads."""

    def __init__(self, limit: int = LIMIT):
        self.limit = limit
        self._kept: OrderedDict[str, Capture] = OrderedDict()
        self._lock = threading.Lock()

    def __deepcopy__(self, memo: dict) -> "Store":
        """Itself: Gradio copies whatever its configuration reaches for every page, and captures are large."""
        return self

    @property
    def bytes(self) -> int:
        """The size of all captures; more than `limit` only if there is a single one."""
        return sum(capture.bytes for capture in self._kept.values())

    def add(self, capture: "Capture") -> str:
        """Keep a capture, and drop others until all fit."""
        key = secrets.token_hex(16)
        with self._lock:
            self._kept[key] = capture
            while self.bytes > self.limit and len(self._kept) > 1:
                self._kept.popitem(last=False)
        return key

    def get(self, key: object) -> "Capture":
        """The capture of this id, now the most recently used; UserError if it was dropped or never existed."""
        with self._lock:
            if not isinstance(key, str) or key not in self._kept:
                raise UserError("this capture is no longer kept, because others needed its memory; capture it again")
            self._kept.move_to_end(key)
            return self._kept[key]

    def drop(self, key: str) -> None:
        """Drop a capture; it is not an error if it is gone already."""
        with self._lock:
            self._kept.pop(key, None)
