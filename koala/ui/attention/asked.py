"""What the Attention tab's fields ask for: two models on the same noise, and what is recorded of them."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

from koala.attention.plan import AttentionPlan
from koala.errors import UserError
from koala.request import MAX_SEED, GenerationRequest
from koala.sampling.resolve import same_noise
from koala.ui.attention.recording import Recording
from koala.ui.catalogue import Catalogue
from koala.ui.settings import whole

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
