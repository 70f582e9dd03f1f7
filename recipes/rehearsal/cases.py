"""What is rehearsed, and tried on a card: every plan of every model, two of them together, presets, LoRA, recording."""

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file

from koala.attention.plan import plan as attention_plan
from koala.attention.record import capture
from koala.errors import UserError
from koala.hardware.cuda import Card
from koala.hardware.memory_plan import GB, Plan
from koala.models.library import Library
from koala.request import GenerationRequest
from koala.sampling.compare import compare
from koala.sampling.generate import generate
from recipes.rehearsal.card import rehearsed
from recipes.rehearsal.checks import bytes_wrong, problems

MODELS = ("sdxl-base", "koala-1b", "koala-700m")
SIZES = (24, 12, 8, 6, 4, 3)  # GB, of cards
INSTANCES = (5, 10, 20)  # GB, of MIG: an A100's 1g.5gb, 2g.10gb, 3g.20gb
STEPS = 2
RANK = 8


def card(gigabytes: int, name: str = "") -> Card:
    """A card of this size that nothing else uses."""
    size = gigabytes * GB
    return Card(name=name or f"{gigabytes} GB", total_bytes=size, free_bytes=size, capability=(8, 6))


@dataclass(frozen=True, kw_only=True)
class Case:
    """Models that draw a prompt on a card; `name` says what is special. `draw` does it, by default `drawn`.

    `again` is what follows on the card as the run has left it.
    """

    name: str
    models: tuple[str, ...]
    card: Card
    beside: tuple[Card, ...] = ()  # cards with smaller numbers, which nothing may touch
    kind: str = "cuda"  # or mps, an Apple GPU, whose memory is the machine's
    request: dict = field(default_factory=dict)
    draw: Callable[["Case", Library], Plan] | None = None
    again: Callable[["Case", Library], Plan] | None = None

    def requests(self, **more) -> list[GenerationRequest]:
        """One for each model, at 1024 px unless the case says otherwise."""
        settings = {
            "prompt": "a koala on a tree",
            "steps": STEPS,
            "width": 1024,
            "height": 1024,
            **self.request,
            **more,
        }
        return [GenerationRequest(model=model, **settings) for model in self.models]

    def run(self) -> "Outcome":
        """Rehearse it. The outcome says what is wrong, and what was refused."""
        device = f"{self.kind}:{len(self.beside)}"
        with rehearsed(*self.beside, self.card, device=device) as rehearsal:
            library = rehearsal.library()
            try:
                plan = (self.draw or drawn)(self, library)
            except UserError as error:
                return Outcome(case=self, refusal=str(error))
            wrong = problems(rehearsal, plan, self.models)
            if self.again:
                self.again(self, library)
                wrong += bytes_wrong(rehearsal, plan.live_peak_bytes)
            live = {stage: rehearsal.live(stage) for stage in dict.fromkeys(call.stage for call in rehearsal.calls)}
            return Outcome(case=self, plan=plan, tracked=rehearsal.peak, live=live, problems=tuple(wrong))


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a rehearsal found; without a plan it was refused, in `refusal`'s words. Bytes are the card's."""

    case: Case
    plan: Plan | None = None
    refusal: str | None = None
    tracked: int | None = None
    live: dict[str, int] = field(default_factory=dict)  # of each stage's busiest moment, without weights
    problems: tuple[str, ...] = ()

    def row(self) -> dict:
        """For the report."""
        row = {"case": self.case.name, "models": list(self.case.models), "card": self.case.card.name}
        row |= {"card_bytes": self.case.card.total_bytes}
        if self.plan is None:
            return row | {"plan": None, "refusal": self.refusal, "predicted_bytes": None, "tracked_bytes": None}
        where = {name: getattr(self.plan, name) for name in ("text", "unet", "vae_tile", "dtype", "vae_dtype")}
        return row | {
            "plan": where | {"tiny_vae": self.plan.tiny_vae},
            "predicted_bytes": self.plan.live_peak_bytes,
            "tracked_bytes": self.tracked,
            "live_bytes": self.live,
        }


def drawn(case: Case, library: Library) -> Plan:
    """The pictures, by `generate` for one model and `compare` for several, with previews as the app asks for them."""
    requests, steps = case.requests(), []
    watch = lambda *step: steps.append(step[-1])  # noqa: E731
    if len(requests) > 1:
        plan = compare(requests, library, on_step=watch)[0].plan
    else:
        plan = generate(requests[0], library.get(case.models[0]), on_step=watch).plan
    assert len(steps) == STEPS * len(requests)
    assert plan.unet == "swapped" or any(step.preview for step in steps), "no preview was drawn"
    return plan


def with_lora(case: Case, library: Library) -> Plan:
    """With a LoRA of every linear layer of the transformers, which is fitted where the U-Net is."""
    model = library.get(case.models[0])
    model.adapted.clear()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "lora.safetensors"
        save_file(dict(lora(model.pipeline.unet)), file)
        (request,) = case.requests(lora=str(file))
        result = generate(request, model)
        assert result.lora_layers, "the LoRA has no layer here"
        return result.plan


def with_own_vae(case: Case, library: Library) -> Plan:
    """With a VAE that overflows in float16, as the one of SDXL's authors: it decodes in float32."""
    library.get(case.models[0]).pipeline.vae.register_to_config(force_upcast=True)
    return drawn(case, library)


def lora(unet: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """Factors of the attention and feed-forward layers, in float16."""
    for path, module in unet.named_modules():
        if isinstance(module, torch.nn.Linear) and "transformer_blocks" in path:
            yield f"unet.{path}.lora_A.weight", torch.ones(RANK, module.in_features, dtype=torch.float16)
            yield f"unet.{path}.lora_B.weight", torch.ones(module.out_features, RANK, dtype=torch.float16)


def recorded(case: Case, library: Library) -> Plan:
    """Queries and keys of the last layer of every stage, at every step."""
    model, (request,) = library.get(case.models[0]), case.requests()
    plan = attention_plan(model.spec, request.width, request.height, request.steps)
    result, record = capture(model, request, plan)
    for frame in record.frames:
        for layer in record.layers:
            q, k = frame[layer.path]
            assert q.device == k.device == torch.device("cpu"), f"{layer.label} stayed on the card"
            assert tuple(q.shape) == (request.images, layer.heads, layer.queries, layer.dim), layer.label
    return result.plan


def cases() -> Iterator[Case]:
    """All of them, the plans first."""
    for model in MODELS:
        for size in SIZES:
            yield Case(name="plan", models=(model,), card=card(size))
    small = ("koala-700m",)
    for size in (24, 8):
        yield Case(name="two beside each other", models=("sdxl-base", "koala-700m"), card=card(size))
    for preset in ("fast", "low-memory"):
        yield Case(name=f"preset {preset}", models=small, card=card(8), request={"preset": preset})
    turbo = ("koala-lightning-700m",)  # a model that was distilled to draw without guidance
    yield Case(name="preset turbo", models=turbo, card=card(8), request={"preset": "turbo"})
    yield Case(name="four pictures", models=small, card=card(8), request={"images": 4})
    yield Case(name="2048 px", models=small, card=card(8), request={"width": 2048, "height": 2048})
    yield Case(name="LoRA", models=small, card=card(8), draw=with_lora, again=with_lora)
    yield Case(name="LoRA", models=small, card=card(4), draw=with_lora, again=with_lora)
    yield Case(name="attention recorded", models=small, card=card(8), draw=recorded)
    yield Case(name="VAE in float32", models=small, card=card(8), draw=with_own_vae)
    for size in INSTANCES:
        yield Case(name="MIG", models=("koala-1b",), card=card(size, f"MIG {size} GB"))
    yield Case(name="Apple GPU", models=small, card=card(16), kind="mps")
    # CUDA_VISIBLE_DEVICES=1 makes the second card cuda:0; where both are visible it is cuda:1
    yield Case(name="the second card", models=small, card=card(4), beside=(card(24),))
