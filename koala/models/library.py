"""The models of one process: each is loaded once, by the loader of its runtime, and shares parts with the others."""

import importlib
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch

from koala.hardware.device import Residence, best_device, device_memory
from koala.hardware.memory_plan import pair_plan
from koala.lora.files import content
from koala.lora.moving import changed_parameters
from koala.models.cards import ModelCard
from koala.models.from_torch import spec_of
from koala.models.loaded import STAGE_PARTS, LoadedModel, Placement
from koala.models.locate import locate
from koala.models.registry import find
from koala.request import GenerationRequest

log = logging.getLogger(__name__)

# Runtime of a card -> the module whose load(card, library, dtype) makes the model; imported when one is asked for.
LOADERS = {"torch": "koala.models.from_torch", "onnx": "koala.models.from_onnx"}
LARGE = 100_000_000  # parameters of a U-Net; smaller models stay, whatever else is loaded
EMBEDDINGS = 32  # prompts whose embeddings are cached where a plan releases the text encoders


class Library:
    """The models of one process. Loading is thread-safe; each model and each shared part is loaded once.

    A model is given as its card, or as anything that `registry.find` resolves: a name, a folder, a hub id.

    `memory` is what may be used of the device, in bytes; None takes what is there. `dtype` is float32, bfloat16 or
    float16; None is float16 on a GPU, and on a CPU float32 where that fits. `loaders` has a module per runtime.
    """

    def __init__(
        self,
        device: str | None = None,
        *,
        memory: int | None = None,
        dtype: str | None = None,
        loaders: Mapping[str, str] = LOADERS,
    ):
        self.device = best_device(device)
        self.memory = device_memory(self.device) if memory is None else memory
        self.dtype, self.dtype_asked = dtype, dtype is not None
        self.loaders = loaders
        self.residence = Residence(self.device)
        self.embeddings: OrderedDict = OrderedDict()
        self._models: dict[str, LoadedModel] = {}
        self._shared: dict[str, torch.nn.Module] = {}
        self._lock = threading.Lock()

    def loaded(self, name: str) -> bool:
        """Whether the model of this name is in memory."""
        return name in self._models

    def get(self, model: str | ModelCard, beside: Sequence[str | ModelCard] = ()) -> LoadedModel:
        """This model, loaded now if it was not, in a precision in which it fits together with the models `beside` it.

        Raises UserError with the remedy.
        """
        card = find(model)
        with self._lock:
            if card.name not in self._models:
                together = {card.name: card} | {other.name: other for other in map(find, beside)}
                self._make_room(together)
                others = [other for other in together.values() if other.runtime == "torch"]
                dtype = self._dtype(others) if card.runtime == "torch" else torch.float32
                loader = importlib.import_module(self.loaders[card.runtime])
                self._models[card.name] = loader.load(card, self, dtype)
            return self._models[card.name]

    def forget(self, name: str) -> None:
        """Drop a model whose files are about to be removed; a run that holds it continues."""
        with self._lock:
            self._models.pop(name, None)

    def get_all(self, wanted: Sequence[str | ModelCard]) -> list[LoadedModel]:
        """Models that are to run together, all of torch's in one precision."""
        cards = [find(model) for model in wanted]
        models = [self.get(card, beside=cards) for card in cards]
        own = [m for m in models if m.card.runtime == "torch"]
        if len({m.dtype for m in own}) > 1:  # one was loaded before it was known what it would share memory with
            with self._lock:
                for model in own:
                    self._models.pop(model.card.name, None)
            models = [self.get(card, beside=cards) for card in cards]
        return models

    def settle(self, wanted: Sequence[str | ModelCard]) -> None:
        """Load these models and keep all their parts on the device from now on."""
        models = [self.get(model, beside=wanted) for model in wanted]
        self.residence.settle(part for m in models for stage in STAGE_PARTS for part in m.parts(stage, None))

    def _make_room(self, wanted: Mapping[str, ModelCard]) -> None:
        """Drop large models other than those `wanted`, and the parts that only they used."""
        large = [m for m in self._models.values() if m.parameters > LARGE and m.card.name not in wanted]
        for model in large:
            log.info("%s leaves memory: %s is wanted", model.card.name, ", ".join(wanted))
            del self._models[model.card.name]
        if large:
            with self.residence.lock:  # not during a run
                self.residence.bring(())
            used = {id(part) for m in self._models.values() for part in m.pipeline.components.values()}
            self._shared = {key: part for key, part in self._shared.items() if id(part) in used}
            self.embeddings.clear()

    def place(self, models: Sequence[LoadedModel], requests: Sequence[GenerationRequest]) -> Placement:
        """The memory plan for these requests, whose defaults are filled in; each choice is logged with its reason.

        Exports are left out of it: their runtime plans by itself.
        """
        planned = [(m, r) for m, r in zip(models, requests, strict=True) if m.card.runtime == "torch"]
        if not planned:
            return Placement(plan=None, models=tuple(models))
        models, requests = zip(*planned, strict=True)
        first = requests[0]
        plan = pair_plan(
            [m.spec for m in models],
            device=self.device.type,
            vram_bytes=self.memory,
            width=first.width,
            height=first.height,
            images=first.images,
            guided=any(r.guidance > 1 for r in requests),
            preset=first.preset,
            dtype=str(models[0].dtype).removeprefix("torch."),
            dtype_asked=self.dtype_asked,
            vae_fp16_safe=not models[0].pipeline.vae.config.force_upcast,
            tiny_vae=all(m.tiny_vae for m in models),
            lora=sum(map(_changed_bytes, models, requests)),
        )
        for choice in plan.choices:
            log.info("%s: %s (%s)", choice.what, choice.value, choice.reason)
        return Placement(plan=plan, models=models)

    def _dtype(self, cards: Sequence[ModelCard]) -> torch.dtype:
        """The precision of U-Net and text encoders in which all these models fit, at their own size."""
        if self.dtype:
            return getattr(torch, self.dtype)
        specs = [spec_of(card, locate(card)) for card in cards]
        size = {"width": cards[0].width, "height": cards[0].height}
        plan = pair_plan(specs, device=self.device.type, vram_bytes=self.memory, tiny_vae=True, preset="fast", **size)
        return getattr(torch, plan.dtype)

    def share(self, key: str, make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
        """The part with this key, made now if no model has it."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def content(self, part: torch.nn.Module) -> str:
        """The key of a shared part: its file's hash, its use and its precision; empty for a part that is not shared."""
        return next((key for key, shared in self._shared.items() if shared is part), "")


def _changed_bytes(model: LoadedModel, request: GenerationRequest) -> int:
    """Bytes of the weights that a request's LoRA changes; without one, of those kept for the last LoRA."""
    wanted = request.lora and (content(Path(request.lora)), float(request.lora_strength))
    if request.lora and request.lora_strength and wanted not in model.adapted:
        return changed_parameters(Path(request.lora), model.spec) * model.dtype.itemsize
    return sum(weight.nbytes for kept in model.adapted.values() for weight in kept.weights.values())
