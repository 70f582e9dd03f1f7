"""A U-Net on disk, whatever holds it: a model by name, a folder of a pipeline or a U-Net, one safetensors file."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from koala.errors import UserError
from koala.files.reading import read_object
from koala.files.tensorfiles import PICKLES, StoredTensor, refuse_pickle, stored_in
from koala.models.hub_address import hub_id
from koala.models.layout import STEMS, listing, needed, weight_map, weights
from koala.models.locate import Location, NoSettings, locate
from koala.models.networks import StoredNetwork, empty, matched
from koala.models.registry import find
from koala.models.semantics import SCHEDULER, UNET, VAE, check_config, check_markers, prediction
from koala.models.single_file.reading import read_single_file
from koala.unet.config import from_config
from koala.unet.specs import UNetSpec

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class UNetCheckpoint:
    """A U-Net whose tensors are known by name and place, and not yet read."""

    name: str  # as it was asked for
    spec: UNetSpec
    config: dict  # of its config.json; the spec's own for a file that has none
    tensors: dict[str, StoredTensor]  # by diffusers' key; exactly those of its network
    revision: str  # hub commit, or "local"
    pipeline: dict[str, Path] | None  # the small files around it by their place in the pipeline; None for a U-Net alone
    parts: Mapping[str, StoredNetwork] = field(default_factory=dict)  # text encoders and VAE of a pipeline
    markers: Mapping[str, StoredTensor] = field(
        default_factory=dict
    )  # koala.models.semantics.MARKERS: what it predicts

    @property
    def predicts(self) -> str | None:
        """What it predicts, in words; None for a U-Net alone without markers. See `semantics.prediction`."""
        return prediction(self.markers, self.pipeline and read_object(self.pipeline[SCHEDULER]))


def open_unet(name: str) -> UNetCheckpoint:
    """The U-Net of a model name, hub id, pipeline folder, U-Net folder or safetensors file.

    Raises UserError for what is not a whole U-Net of SDXL's family; only headers are read, and nothing is unpickled.
    """
    path = Path(name)
    if hub_id(name):  # a pasted address, which may look like a file
        return open_located(name, locate(find(name)))
    if path.is_file() or path.suffix.lower() in (".safetensors", *PICKLES):
        return _file(path)
    if (path / "config.json").is_file():
        return _folder(path)
    return open_located(name, locate(find(name)))


def open_located(name: str, location: Location) -> UNetCheckpoint:
    """The U-Net of a located pipeline, with all of the pipeline's parts."""
    folder = location.folder / "unet"
    file = folder / "config.json"
    config = read_object(file)
    stored = location.stored("unet")
    if "unet" in location.chosen and (index := location.chosen["unet"].index):
        _check_index(location.folder / index, stored)
    unet = matched("unet", location.place("unet"), empty("unet", folder), stored)
    scheduler = location.configs[SCHEDULER]
    check_markers(unet.markers, read_object(scheduler), scheduler)
    parts = {}
    for part in STEMS.keys() - {"unet"}:
        network = empty(part, location.configured(part))
        parts[part] = matched(part, location.place(part), network, location.stored(part))
    return UNetCheckpoint(
        name=name,
        spec=from_config(config, name, str(file)),
        config=config,
        tensors=unet.tensors,
        revision=location.revision,
        pipeline=_rest(location),
        parts=parts,
        markers=unet.markers,
    )


def _check_index(index: Path, tensors: Mapping[str, StoredTensor]) -> None:
    """UserError where the index of a component in several files lists a tensor that none of them has."""
    if absent := {shard for name, shard in weight_map(index).items() if name not in tensors}:
        raise UserError(f"{index.parent} lacks {min(absent)}, which its {index.name} lists; copy it there")


def _rest(location: Location) -> dict[str, Path]:
    """The small files of a pipeline around its U-Net, by their place in it."""
    small = set(needed(listing(location.folder), {})) | {VAE}
    files = {name: location.folder / name for name in sorted(small) if not name.startswith("unet/")}
    return files | {VAE: location.configs[VAE]}  # a VAE of another repository has its config next to it


def _folder(folder: Path) -> UNetCheckpoint:
    file = folder / "config.json"
    config = read_object(file)
    spec = from_config(config, str(folder), str(file))
    check_config(UNET, config, str(file))
    for pickle in [] if (chosen := weights(listing(folder), STEMS["unet"])) else sorted(folder.iterdir()):
        refuse_pickle(pickle)
    for index in folder.glob("*.safetensors.index*.json") if chosen is None else ():
        shards = sorted(set(weight_map(index).values()))
        absent = next((shard for shard in shards if not (folder / shard).is_file()), shards[0])
        raise UserError(f"{folder} lacks {absent}, which its {index.name} lists; copy it there")
    if chosen is None:
        raise UserError(f"{folder} has no weights: {STEMS['unet']}.safetensors is missing; copy it there")
    stored = stored_in(folder / name for name in chosen.files)
    if chosen.index:
        _check_index(folder / chosen.index, stored)
    unet = matched("unet", folder, empty("unet", folder), stored)
    return _alone(str(folder), spec, config, unet)


def _alone(name: str, spec: UNetSpec, config: dict, unet: StoredNetwork) -> UNetCheckpoint:
    """A U-Net without a pipeline."""
    return UNetCheckpoint(
        name=name,
        spec=spec,
        config=config,
        tensors=unet.tensors,
        revision="local",
        pipeline=None,
        markers=unet.markers,
    )


def _file(path: Path) -> UNetCheckpoint:
    single = read_single_file(path)
    if single.parts:
        try:
            location = locate(find(str(path)))
        except NoSettings as error:
            log.warning("%s; of what the file holds only its U-Net is used", error)
        else:
            return open_located(str(path), location)
    spec = single.spec
    with torch.device("meta"):
        network = UNet2DConditionModel(**spec.config())
    return _alone(str(path), spec, spec.config(), matched("unet", path, network, single.unet))
