"""The whole program on a described card: its own code, on tensors without data.

Replaced is only what needs numbers, each one function: whether values are finite, the number in a tensor, the bytes of
a picture, and where a scheduler keeps its timesteps (on the CPU, with its sigmas; so they stay real).
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest import mock

import torch
from diffusers import AutoencoderKL, AutoencoderTiny, UNet2DConditionModel
from PIL import Image
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from koala import finite
from koala.attention import record
from koala.hardware.cuda import Card, DescribedCards, in_place
from koala.hardware.device import Residence
from koala.models import random_weights, schedulers
from koala.models.cards import ModelCard
from koala.models.library import Library
from koala.models.loaded import LoadedModel
from koala.sampling import decoding
from recipes.rehearsal.fakes import Storages, attention, install

HOST = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Call:
    """One call of a part: what it computes in, and what it was given."""

    stage: str  # text, unet, vae, or small vae: of previews and of the presets that decode with it
    part: str
    dtype: str  # of its weights
    inputs: str  # of its first input
    device: torch.device
    weights: int  # bytes of the parts that are on the card with it


@dataclass(kw_only=True)
class Rehearsal:
    """What happened on the card: `moves` as (part, "card" | "host"), `calls` in their order, and the bytes."""

    card: Card
    device: torch.device
    mode: FakeTensorMode
    storages: Storages
    moves: list[tuple[str, str]] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)

    @property
    def peak(self) -> int:
        """The most bytes at once on the card."""
        return max(self.storages.busiest.values())

    def live(self, stage: str) -> int:
        """Of a stage's busiest moment, what is no part's weights."""
        return self.storages.busiest[stage] - max(call.weights for call in self.calls if call.stage == stage)

    def library(self, **settings) -> "RehearsedLibrary":
        """Models of any size in the described machine's memory."""
        return RehearsedLibrary(self, **settings)

    def empty(self, module: torch.nn.Module, device: torch.device = HOST) -> torch.nn.Module:
        """A module that was made on meta, with tensors that say they are on `device`."""
        for inner in module.modules():
            for kind in (inner._parameters, inner._buffers):
                for name, value in kind.items():
                    if value is not None:
                        kind[name] = self.tensor(value, device)
                        kind[name]._is_param = isinstance(value, torch.nn.Parameter)
                        kind[name].requires_grad_(value.requires_grad)
        return module

    def tensor(self, meta: torch.Tensor, device: torch.device) -> FakeTensor:
        """A tensor in the shape of one on meta."""
        tensor = FakeTensor(self.mode, meta.detach(), device)
        self.storages.follow(tensor)
        return tensor


class RehearsedResidence(Residence):
    """Residence, with every move noted."""

    def __init__(self, rehearsal: Rehearsal):
        super().__init__(rehearsal.device)
        self.rehearsal, self.names = rehearsal, {}

    def name(self, part: torch.nn.Module) -> str:
        return self.names.get(id(part), type(part).__name__)

    def bring(self, working: Iterable[torch.nn.Module], keep: Iterable[torch.nn.Module] = ()) -> None:
        self.rehearsal.storages.stage = "swap"
        super().bring(working, keep)
        self.rehearsal.storages.stage = "beside"

    def _send(self, part: torch.nn.Module, device: torch.device) -> None:
        self.rehearsal.moves.append((self.name(part), "host" if device == HOST else "card"))
        super()._send(part, device)

    def weights(self) -> int:
        """Bytes of all parts that are on the card."""
        return sum(p.nbytes for part in self.here for p in part.parameters() if p.device == self.rehearsal.device)


class RehearsedLibrary(Library):
    """A library of any model, without a byte of weights."""

    def __init__(self, rehearsal: Rehearsal, **settings):
        super().__init__(str(rehearsal.device), loaders={"torch": __name__}, **settings)
        self.dtype = self.dtype or ("float32" if self.device.type == "cpu" else "float16")
        self.rehearsal = rehearsal
        self.residence = RehearsedResidence(rehearsal)

    def note(self, model: LoadedModel) -> None:
        """Note every call of the parts of a model, each under its name."""
        parts = model.pipeline.components | {"tiny_vae": model.tiny_vae}
        for name, part in parts.items():
            if isinstance(part, torch.nn.Module) and id(part) not in self.residence.names:
                self.residence.names[id(part)] = f"{model.card.name}'s U-Net" if name == "unet" else name
                self._note(part, name)

    def _note(self, part: torch.nn.Module, name: str) -> None:
        """Note every call of a part: which weights were on the card, in what it computes."""
        stages = {UNet2DConditionModel: "unet", AutoencoderKL: "vae", AutoencoderTiny: "small vae"}
        stage = stages.get(type(part), "text")
        rehearsal, residence = self.rehearsal, self.residence

        def called(module: torch.nn.Module, args: tuple, kwargs: dict) -> None:
            weight, first = next(module.parameters()), (*args, *kwargs.values())[0]
            rehearsal.storages.stage = stage
            rehearsal.calls.append(
                Call(
                    stage=stage,
                    part=residence.name(part),
                    dtype=str(weight.dtype).removeprefix("torch."),
                    inputs=str(first.dtype).removeprefix("torch."),
                    device=weight.device,
                    weights=residence.weights(),
                )
            )

        def done(*_: object) -> None:
            rehearsal.storages.stage = "beside"

        computes = part.decoder if stage.endswith("vae") else part
        computes.register_forward_pre_hook(called, with_kwargs=True)
        computes.register_forward_hook(done)


def load(card: ModelCard, library: RehearsedLibrary, dtype: torch.dtype) -> LoadedModel:
    """A model without a byte of weights, whose calls are noted."""

    def empty(build: Callable[[], torch.nn.Module], dtype: torch.dtype) -> torch.nn.Module:
        with torch.device("meta"):
            module = build().to(dtype)
        return library.rehearsal.empty(module.requires_grad_(False)).eval()

    model = random_weights.load(card, library, dtype, empty)
    model.warm = _Warm()
    library.note(model)
    return model


class _Warm(set):
    """Every shape has run: a warm-up before a measurement has nothing to warm here."""

    def __contains__(self, shape: object) -> bool:
        return True


def _picture(decoded: torch.Tensor) -> Image.Image:
    """A black picture of the decoded one's size."""
    return Image.new("RGB", (decoded.shape[-1], decoded.shape[-2]))


def _keeping_timesteps(build: Callable) -> Callable:
    def built(name: str, config: dict):
        scheduler = build(name, config)
        set_timesteps = scheduler.set_timesteps
        scheduler.set_timesteps = lambda steps=None, device=None, **more: set_timesteps(steps, device="cpu", **more)
        return scheduler

    return built


def _swapping(mode: FakeTensorMode, swap: Callable) -> Callable:
    def swapped(first: torch.Tensor, second: torch.Tensor) -> None:
        mode.fake_tensor_converter.tensor_memo.clear()  # its weak references forbid the swap by which parts move
        swap(first, second)

    return swapped


@contextmanager
def rehearsed(*cards: Card, device: str = "cuda:0") -> Iterator[Rehearsal]:
    """Have this process see these cards, and work on the one that `device` names; torch's compiler is off.

    `device` is cuda:N, mps:0 for an Apple GPU with the card's memory, or cpu where only bytes are counted.

    NoCompiler where the guard that this takes cannot be built.
    """
    install()
    where = torch.device(device)
    mode, storages = FakeTensorMode(allow_non_fake_inputs=True), Storages(where)
    everywhere, number = finite.everywhere, record.number
    described = DescribedCards(cards, peak=lambda: storages.peak, reset_peak=storages.reset)
    replaced = (
        (finite, "everywhere", lambda c: True if isinstance(c, FakeTensor) else everywhere(c)),
        (record, "number", lambda v: 0.0 if isinstance(v, FakeTensor) else number(v)),
        (decoding, "to_picture", _picture),
        (schedulers, "build", _keeping_timesteps(schedulers.build)),
        (torch.nn.functional, "scaled_dot_product_attention", attention),
        (torch.utils, "swap_tensors", _swapping(mode, torch.utils.swap_tensors)),
        (torch.mps, "synchronize", lambda: None),
        (torch.mps, "recommended_max_memory", lambda: cards[0].free_bytes),
    )
    with ExitStack() as stack:
        stack.enter_context(in_place(described))
        for place, name, replacement in replaced:
            stack.enter_context(mock.patch.object(place, name, replacement))
        stack.enter_context(torch._dynamo.config.patch(disable=True))
        stack.enter_context(mode)
        stack.enter_context(storages)
        yield Rehearsal(card=cards[where.index or 0], device=where, mode=mode, storages=storages)
