"""A folder or a single file as a loaded model: its networks in torch, from exactly the tensors that its files hold."""

import json
import logging
from pathlib import Path

import torch
from diffusers import AutoencoderTiny, StableDiffusionXLPipeline, UNet2DConditionModel

from koala.files.hashing import digest
from koala.files.reading import read_object
from koala.models.cards import CARDS, ModelCard
from koala.models.layout import DRAWING, TOKENIZERS
from koala.models.loaded import STAGE_PARTS, LoadedModel, Shelf
from koala.models.locate import Location, locate, tiny_vae
from koala.models.networks import read_network
from koala.models.reading import check_complete, check_widths, from_files, load_noising, load_tokenizer
from koala.models.semantics import SCHEDULER, own_sampler, with_class_defaults, zeros_for_empty
from koala.request import SCHEDULERS
from koala.unet.config import from_config
from koala.unet.specs import UNetSpec

log = logging.getLogger(__name__)

_HOW_USED = ("force_upcast", "scaling_factor", "shift_factor", "latents_mean", "latents_std")  # in a VAE's config


def load(card: ModelCard, library: Shelf, dtype: torch.dtype) -> LoadedModel:
    """The model of this card on the library's device; text encoders and VAE are shared with models that have the same
    ones."""
    location = locate(card)
    _say_scheduler(card, location)
    folder, small = location.folder, tiny_vae(card)
    with from_files(card.name, folder):
        unet = load_unet(location, dtype)
        parts = {n: shared_part(library, n, location, dtype) for n in STAGE_PARTS["text"]}
        check_widths(folder, unet.config, [part.config for part in parts.values()])
        words = [part.config.vocab_size for part in parts.values()]
        pipeline = StableDiffusionXLPipeline(
            unet=unet,
            vae=shared_part(library, "vae", location, dtype),
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
        spec=spec_of(card, location),
        tiny_vae=tiny,
        library=library,
        revision=location.revision,
        parameters=sum(p.numel() for p in unet.parameters()),
    )


def shared_part(library: Shelf, component: str, location: Location, dtype: torch.dtype) -> torch.nn.Module:
    """A text encoder or VAE, shared with every model whose weights have the same hash and are used alike."""
    folder, files = location.configured(component), location.files(component)
    config = read_object(folder / "config.json")
    used = {name: config[name] for name in _HOW_USED if name in config}
    key = f"{component}:{'+'.join(map(digest, files))}:{json.dumps(used)}:{dtype}"
    return library.share(key, lambda: load_part(component, location, dtype))


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
        vae, loading_info = AutoencoderTiny.from_pretrained(folder, torch_dtype=dtype, output_loading_info=True)
    check_complete(loading_info, folder)
    return vae.eval()


def spec_of(card: ModelCard, location: Location) -> UNetSpec:
    """From the card, else from the U-Net's own config."""
    file = location.folder / "unet" / "config.json"
    return card.spec or from_config(read_object(file), card.name, str(file))


def _say_scheduler(card: ModelCard, location: Location) -> None:
    """Warn where an untested model is drawn with a scheduler other than its own by default."""
    if card.name in CARDS or card.teacher or card.single_file or (location.folder / DRAWING).is_file():
        return  # their settings are the authors' own
    file = location.configs[SCHEDULER]
    config = read_object(file)
    nearest, same = own_sampler(config)
    if (nearest, card.steps) == ("euler-trailing", ModelCard.steps) and not config.get("rescale_betas_zero_snr"):
        log.warning(
            "%s has trailing timesteps, as few-step models have, and nothing says how many steps it takes; by default "
            "it is drawn in %d steps with guidance %g. Give --steps and --guidance as its page says",
            file,
            card.steps,
            card.guidance,
        )
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
