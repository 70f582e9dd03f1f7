"""Files -> models ready to run; text encoders and VAE that are the same file are loaded once and shared."""

import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, StableDiffusionXLPipeline, UNet2DConditionModel

from koala.device import best_device, device_memory
from koala.from_files import check_complete, check_widths, from_files, load_noising, load_tokenizer
from koala.hashing import digest
from koala.layout import DRAWING, TOKENIZERS
from koala.locate import Location, locate, tiny_vae
from koala.lora import LoraReport, changed_parameters
from koala.lora_files import content
from koala.networks import read_network
from koala.plans import Plan, pair_plan
from koala.read_json import read_object
from koala.registry import CARDS, ModelCard, find
from koala.request import SCHEDULERS, GenerationRequest
from koala.residence import Residence
from koala.semantics import SCHEDULER, own_sampler, with_class_defaults, zeros_for_empty
from koala.specs import UNetSpec
from koala.unet_config import from_config

log = logging.getLogger(__name__)

_HOW_USED = ("force_upcast", "scaling_factor", "shift_factor", "latents_mean", "latents_std")  # in a VAE's config
STAGE_PARTS = {"text": ("text_encoder", "text_encoder_2"), "unet": ("unet",), "vae": ("vae",)}
LARGE = 100_000_000  # parameters of a U-Net; smaller models stay, whatever else is loaded
EMBEDDINGS = 32  # prompts whose embeddings are remembered where a plan releases the text encoders


def load_part(component: str, location: Location, dtype: torch.dtype) -> torch.nn.Module:
    """A text encoder or the VAE of a located model, frozen."""
    folder, place = location.configured(component), location.place(component)
    return read_network(component, folder, location.stored(component), dtype, place=place)


def load_unet(location: Location, dtype: torch.dtype) -> UNet2DConditionModel:
    """The U-Net of a located model, frozen."""
    scheduler = location.folder / "scheduler" / "scheduler_config.json"
    folder, place = location.folder / "unet", location.place("unet")
    return read_network("unet", folder, location.stored("unet"), dtype, scheduler=scheduler, place=place)


def load_tiny_vae(folder: Path, dtype: torch.dtype) -> AutoencoderTiny:
    """diffusers' small decoder from its folder."""
    with from_files("the tiny VAE", folder):
        vae, told = AutoencoderTiny.from_pretrained(folder, torch_dtype=dtype, output_loading_info=True)
    check_complete(told, folder)
    return vae.eval()


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """A LoRA as it was put on a model: what became of it, and every weight that it changes, in host memory."""

    report: LoraReport
    weights: dict[str, torch.Tensor]


@dataclass(kw_only=True)
class LoadedModel:
    """A model in memory. `lock` is held by the one run that uses the device: two runs never share a U-Net at once."""

    card: ModelCard
    pipeline: StableDiffusionXLPipeline
    spec: UNetSpec
    tiny_vae: AutoencoderTiny | None
    library: "Library"
    revision: str
    parameters: int  # of the U-Net
    warm: set[tuple] = field(default_factory=set)  # request shapes that have run once
    # (a LoRA's content, its strength) -> that LoRA, as long as no other one is asked for
    adapted: dict[tuple[str, float], Fitted] = field(default_factory=dict)

    @property
    def device(self) -> torch.device:
        """Where the model works."""
        return self.library.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the U-Net's weights."""
        return self.pipeline.unet.dtype

    @property
    def precision(self) -> str:
        """Of the U-Net's weights."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def software(self) -> dict[str, str]:
        """Versions of what decides the pixels beside torch and its libraries."""
        return {}

    @property
    def lock(self) -> threading.Lock:
        """The device's: whoever draws holds it, as parts are shared and move."""
        return self.library.residence.lock

    def decoder(self, plan: Plan | None) -> torch.nn.Module:
        """The VAE that a plan decodes with, the tiny one or its own."""
        return self.tiny_vae if plan and plan.tiny_vae else self.pipeline.vae

    def parts(self, stage: str, plan: Plan | None) -> list[torch.nn.Module]:
        """The modules that work in a stage: text, unet or vae."""
        if stage == "vae":
            return [self.decoder(plan), *([self.tiny_vae] if self.tiny_vae else [])]
        return [getattr(self.pipeline, name) for name in STAGE_PARTS[stage]]

    def place(self, request: GenerationRequest) -> "Placement":
        """The memory plan for a run of this model alone."""
        return self.library.place([self], [request])


@dataclass(frozen=True, kw_only=True)
class Placement:
    """A memory plan that one model follows, or several that draw the same prompt one after the other."""

    plan: Plan | None  # None for exports: their runtime decides, and everything is on the device
    models: tuple[LoadedModel, ...]

    @property
    def keeps_text(self) -> bool:
        """Whether the text encoders stay on the device, ready for the next prompt."""
        return self.plan is None or self.plan.text == "resident"

    @property
    def tile(self) -> int | None:
        """Latents per side of the VAE's tiles."""
        return self.plan.vae_tile if self.plan else None

    def on_device(self, stage: str) -> tuple[str, ...]:
        """Which of "text", "unet" and "vae" are on the device in the stage of that name."""
        return self.plan.on_device(stage) if self.plan else tuple(STAGE_PARTS)

    def enter(self, stage: str, model: LoadedModel) -> None:
        """Have on the device what the plan wants there in this stage of `model`, and nothing else."""
        there = self.on_device(stage)
        working = [p for part in there for p in model.parts(part, self.plan)]
        others = [part for part in there if part != "unet" or self.plan is None or self.plan.unet == "resident"]
        keep = [p for other in self.models for part in others for p in other.parts(part, self.plan)]
        model.library.residence.bring(working, keep)


class Library:
    """The models of one process. Loading is thread-safe; each model and each shared part is loaded once.

    `memory` is what may be used of the device, in bytes; None takes what is there. `dtype` is float32, bfloat16 or
    float16; None is float16 on a GPU, and on a CPU float32 where that fits.
    """

    def __init__(self, device: str | None = None, *, memory: int | None = None, dtype: str | None = None):
        self.device = best_device(device)
        self.memory = device_memory(self.device) if memory is None else memory
        self.dtype, self.dtype_asked = dtype, dtype is not None
        self.residence = Residence(self.device)
        self.embeddings: OrderedDict = OrderedDict()
        self._models: dict[str, LoadedModel] = {}
        self._shared: dict[str, torch.nn.Module] = {}
        self._lock = threading.Lock()

    def loaded(self, name: str) -> bool:
        """Whether the model of this name is in memory."""
        return name in self._models

    def get(self, name: str, beside: Sequence[str] = ()) -> LoadedModel:
        """The model of this name, loaded now if it was not, in a precision in which those `beside` it fit as well.

        Raises RequestError with the remedy.
        """
        card = find(name)
        with self._lock:
            if card.name not in self._models:
                together = {card.name: card} | {other.name: other for other in map(find, beside)}
                self._make_room(together)
                if card.runtime == "onnx":
                    from koala.runtimes.ort import load  # onnxruntime is imported where a model asks for it

                    self._models[card.name] = load(card, self)
                else:
                    others = [other for other in together.values() if other.runtime == "torch"]
                    self._models[card.name] = self._load(card, self._dtype(others))
            return self._models[card.name]

    def forget(self, name: str) -> None:
        """Free a model whose files are about to go; a run that holds it goes on."""
        with self._lock:
            self._models.pop(name, None)

    def get_all(self, names: Sequence[str]) -> list[LoadedModel]:
        """Models that are to run beside each other, all of torch's in one precision."""
        models = [self.get(name, beside=names) for name in names]
        own = [m for m in models if m.card.runtime == "torch"]
        if len({m.dtype for m in own}) > 1:  # one was loaded before it was known what would stand beside it
            with self._lock:
                for model in own:
                    self._models.pop(model.card.name, None)
            models = [self.get(name, beside=names) for name in names]
        return models

    def settle(self, names: Sequence[str]) -> None:
        """Load these models and have all their parts on the device from now on."""
        models = [self.get(name, beside=names) for name in names]
        self.residence.settle(part for m in models for stage in STAGE_PARTS for part in m.parts(stage, None))

    def _make_room(self, wanted: Mapping[str, ModelCard]) -> None:
        """Forget the large models that nobody wants now, and the parts that only they used."""
        large = [m for m in self._models.values() if m.parameters > LARGE and m.card.name not in wanted]
        for model in large:
            log.info("%s leaves memory: %s is wanted", model.card.name, ", ".join(wanted))
            del self._models[model.card.name]
        if large:
            with self.residence.lock:  # not under a run
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
        found = pair_plan(
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
        for choice in found.choices:
            log.info("%s: %s (%s)", choice.what, choice.value, choice.reason)
        return Placement(plan=found, models=models)

    def _dtype(self, cards: Sequence[ModelCard]) -> torch.dtype:
        """The precision of U-Net and text encoders in which all these models fit, at their own size."""
        if self.dtype:
            return getattr(torch, self.dtype)
        specs = [_spec(card, locate(card)) for card in cards]
        size = {"width": cards[0].width, "height": cards[0].height}
        found = pair_plan(specs, device=self.device.type, vram_bytes=self.memory, tiny_vae=True, preset="fast", **size)
        return getattr(torch, found.dtype)

    def share(self, key: str, make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
        """The part of this key, made now if no model has it."""
        if key not in self._shared:
            self._shared[key] = make()
        return self._shared[key]

    def content(self, part: torch.nn.Module) -> str:
        """What a shared part is: its file's hash, how it is used, its precision; empty for one that is not shared."""
        return next((key for key, shared in self._shared.items() if shared is part), "")

    def part(self, component: str, location: Location, dtype: torch.dtype) -> torch.nn.Module:
        """A text encoder or VAE, shared with every model whose weights have the same hash and are used alike."""
        folder, files = location.configured(component), location.files(component)
        config = read_object(folder / "config.json")
        used = {name: config[name] for name in _HOW_USED if name in config}
        key = f"{component}:{'+'.join(map(digest, files))}:{json.dumps(used)}:{dtype}"
        return self.share(key, lambda: load_part(component, location, dtype))

    def _load(self, card: ModelCard, dtype: torch.dtype) -> LoadedModel:
        location = locate(card)
        _say_scheduler(card, location)
        folder, small = location.folder, tiny_vae(card)
        with from_files(card.name, folder):
            unet = load_unet(location, dtype)
            parts = {n: self.part(n, location, dtype) for n in STAGE_PARTS["text"]}
            check_widths(folder, unet.config, [part.config for part in parts.values()])
            words = [part.config.vocab_size for part in parts.values()]
            pipeline = StableDiffusionXLPipeline(
                unet=unet,
                vae=self.part("vae", location, dtype),
                scheduler=load_noising(folder / "scheduler"),
                force_zeros_for_empty_prompt=zeros_for_empty(folder / "model_index.json"),
                add_watermarker=False,
                **{n: load_tokenizer(folder / n, count) for n, count in zip(TOKENIZERS, words, strict=True)},
                **parts,
            )
            tiny = load_tiny_vae(small, dtype) if small else None
        pipeline.set_progress_bar_config(disable=True)
        return LoadedModel(
            card=card,
            pipeline=pipeline,
            spec=_spec(card, location),
            tiny_vae=tiny,
            library=self,
            revision=location.revision,
            parameters=sum(p.numel() for p in unet.parameters()),
        )


def _say_scheduler(card: ModelCard, location: Location) -> None:
    """A warning where a model that nobody has tried here is drawn with another scheduler than its own by default."""
    if card.name in CARDS or card.teacher or card.single_file or (location.folder / DRAWING).is_file():
        return  # the settings of these are their authors'
    file = location.configs[SCHEDULER]
    config = read_object(file)
    nearest, same = own_sampler(config)
    if not same or nearest != card.scheduler:
        log.warning(
            "%s is for %s with %s timesteps; by default pictures are drawn with %s here, so they differ from those of "
            "diffusers; --scheduler names another: %s",
            file,
            config.get("_class_name", "no scheduler by name"),
            with_class_defaults(config)["timestep_spacing"],
            card.scheduler,
            ", ".join(SCHEDULERS),
        )


def _changed_bytes(model: LoadedModel, request: GenerationRequest) -> int:
    """Of the weights that a request's LoRA changes; without one, of those that are kept of the last."""
    wanted = request.lora and (content(Path(request.lora)), float(request.lora_strength))
    if request.lora and request.lora_strength and wanted not in model.adapted:
        return changed_parameters(Path(request.lora), model.spec) * model.dtype.itemsize
    return sum(weight.nbytes for kept in model.adapted.values() for weight in kept.weights.values())


def _spec(card: ModelCard, location: Location) -> UNetSpec:
    """From the card, else from the U-Net's own config."""
    file = location.folder / "unet" / "config.json"
    return card.spec or from_config(read_object(file), card.name, str(file))
