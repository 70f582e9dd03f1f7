"""Networks of a pipeline from their files: built empty from config.json, then filled with exactly its tensors."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from koala.files.reading import read_object
from koala.files.tensorfiles import Streamed, check_numbers, load
from koala.models.accounting import account
from koala.models.reading import from_files, say_ignored
from koala.models.semantics import check_markers

log = logging.getLogger(__name__)

CLASSES = {
    "unet": UNet2DConditionModel,
    "vae": AutoencoderKL,
    "text_encoder": CLIPTextModel,
    "text_encoder_2": CLIPTextModelWithProjection,
}


@dataclass(frozen=True, kw_only=True)
class StoredNetwork:
    """The tensors of one component by the names that diffusers and transformers save today; none is read yet."""

    tensors: dict[str, Streamed]
    names: dict[str, str]  # the same tensors -> their names in the files
    markers: dict[str, Streamed]  # marker tensors of its files (semantics.MARKERS)
    left_out: tuple[str, ...]


def empty(part: str, folder: Path) -> torch.nn.Module:
    """The network that a folder's config.json describes, without weights and without memory."""
    kind = CLASSES[part]
    with from_files(f"the {part}", folder):
        if part.startswith("text"):
            config = CLIPTextConfig.from_pretrained(folder)
            config.name_or_path = str(folder)
            with torch.device("meta"):
                return kind(config)
        config = dict(kind.load_config(folder)) | {"_name_or_path": str(folder)}
        with torch.device("meta"):
            return kind.from_config(config)


def saved_names(part: str, network: torch.nn.Module) -> dict[str, str]:
    """The name by which each tensor is saved -> its name in memory, where transformers 5 drops a prefix."""
    names = network.state_dict().keys()
    if part.startswith("text"):
        return {n if n.startswith(("text_model.", "text_projection.")) else f"text_model.{n}": n for n in names}
    return {name: name for name in names}


def matched(part: str, place: Path, network: torch.nn.Module, stored: Mapping[str, Streamed]) -> StoredNetwork:
    """A network's tensors among those of its files; UserError for files of another network. See `accounting`."""
    state = network.state_dict()
    shapes = {saved: tuple(state[name].shape) for saved, name in saved_names(part, network).items()}
    accounted = account(part, place, shapes, {key: tensor.shape for key, tensor in stored.items()})
    accounted.say(place)
    tensors = {saved: stored[key] for saved, key in accounted.names.items()}
    check_numbers(place, {accounted.names[saved]: tensor for saved, tensor in tensors.items()})
    marks = {m: next(t for k, t in stored.items() if k.endswith(m)) for m in accounted.markers}
    return StoredNetwork(tensors=tensors, names=accounted.names, markers=marks, left_out=accounted.left_out)


def _say_unused(vae: Mapping[str, object], folder: Path) -> None:
    """A warning for what a VAE's config says and no pipeline of SDXL applies, diffusers' own neither."""
    names = ["shift_factor"] if vae["shift_factor"] else []
    whitening = [name for name in ("latents_mean", "latents_std") if vae[name] is not None]
    names += whitening if len(whitening) == 1 else []
    if names:
        log.warning("%s says %s, which SDXL's pipelines do not apply", folder / "config.json", " and ".join(names))


def read_network(
    part: str,
    folder: Path,
    stored: Mapping[str, Streamed],
    dtype: torch.dtype,
    *,
    scheduler: Path | None = None,
    place: Path | None = None,
) -> torch.nn.Module:
    """A component from its config's folder and the tensors of its files in this precision, frozen.

    `scheduler` is the config of the scheduler that a U-Net is drawn with: both must mean the same prediction. `place`
    is what an error names, where the tensors are not in the folder.
    """
    if not part.startswith("text"):
        say_ignored(CLASSES[part], folder / "config.json")
    network = empty(part, folder)
    if part == "vae":
        _say_unused(network.config, folder)
    stored_network = matched(part, place or folder, network, stored)
    if scheduler and stored_network.markers:
        check_markers(stored_network.markers, read_object(scheduler), scheduler)
    memory = saved_names(part, network)
    with from_files(f"the {part}", folder):
        state = {memory[saved]: load(tensor).to(dtype) for saved, tensor in stored_network.tensors.items()}
        network.load_state_dict(state, assign=True)
    for name, buffer in list(network.named_buffers()):
        if buffer.is_meta:  # the positions of a text encoder's tokens, which no file holds
            owner, _, own = name.rpartition(".")
            network.get_submodule(owner).register_buffer(own, torch.arange(buffer.numel())[None], persistent=False)
    return network.eval().requires_grad_(False)
