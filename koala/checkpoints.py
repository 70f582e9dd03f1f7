"""A U-Net on disk, whatever holds it: a model by name, a folder of a pipeline or a U-Net, one safetensors file."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel

from koala.accounting import unwrapped
from koala.hub_address import hub_id
from koala.layer_map import renamed
from koala.layout import STEMS, listing, needed, weight_map, weights
from koala.locate import Location, locate
from koala.networks import StoredNetwork, empty, matched
from koala.original_layout import PREFIX, original_names
from koala.read_json import read_object
from koala.registry import find
from koala.request import RequestError
from koala.semantics import EDM_MARKERS, MARKERS, SCHEDULER, UNET, VAE, check_config, check_markers
from koala.specs import SDXL, TINY_SDXL, UNetSpec, student
from koala.tensorfiles import PICKLES, StoredTensor, refuse_pickle, stored_in, stored_tensors
from koala.unet_config import from_config

_REFINER = 384  # channels of its first convolution
_BLOCK = re.compile(r"(down_blocks\.\d|mid_block|up_blocks\.\d)\.(resnets|attentions)\.(\d)(?:.+_blocks\.(\d+))?")


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
    markers: Mapping[str, StoredTensor] = field(default_factory=dict)  # koala.semantics.MARKERS: what it predicts


def open_unet(name: str) -> UNetCheckpoint:
    """The U-Net of a model name, hub id, pipeline folder, U-Net folder or safetensors file.

    Raises RequestError for what is no whole U-Net of SDXL's family; only headers are read, and nothing is unpickled.
    """
    path = Path(name)
    if hub_id(name):  # a pasted address, which may end like a file
        return _pipeline(name, locate(find(name)))
    if path.is_file() or path.suffix.lower() in (".safetensors", *PICKLES):
        return _file(path)
    if (path / "config.json").is_file():
        return _folder(path)
    return _pipeline(name, locate(find(name)))


def _pipeline(name: str, location: Location) -> UNetCheckpoint:
    folder = location.folder / "unet"
    file = folder / "config.json"
    config = read_object(file)
    index = location.chosen["unet"].index if "unet" in location.chosen else None
    stored = _tensors(location.files("unet"), index and location.folder / index)
    unet = matched("unet", folder, empty("unet", folder), stored)
    scheduler = location.configs[SCHEDULER]
    check_markers(unet.markers, read_object(scheduler), scheduler)
    parts = {}
    for part in STEMS.keys() - {"unet"}:
        place = location.configured(part)
        parts[part] = matched(part, place, empty(part, place), _tensors(location.files(part)))
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


def _tensors(files: tuple[Path, ...], index: Path | None = None) -> dict[str, StoredTensor]:
    """The tensors of one file, or of the shards that an index lists."""
    found = stored_in(files)
    if index and (absent := {shard for name, shard in weight_map(index).items() if name not in found}):
        raise RequestError(f"{index.parent} lacks {min(absent)}, which its {index.name} lists; copy it there")
    return found


def _rest(location: Location) -> dict[str, Path]:
    """The small files of a pipeline around its U-Net, by their place in it."""
    small = set(needed(listing(location.folder), {})) | {VAE}
    found = {name: location.folder / name for name in sorted(small) if not name.startswith("unet/")}
    return found | {VAE: location.configs[VAE]}  # a VAE from elsewhere has its config beside it


def _folder(folder: Path) -> UNetCheckpoint:
    file = folder / "config.json"
    config = read_object(file)
    spec = from_config(config, str(folder), str(file))
    check_config(UNET, config, str(file))
    for pickle in [] if (found := weights(listing(folder), STEMS["unet"])) else sorted(folder.iterdir()):
        refuse_pickle(pickle)
    for index in folder.glob("*.safetensors.index*.json") if found is None else ():
        shards = sorted(set(weight_map(index).values()))
        absent = next((shard for shard in shards if not (folder / shard).is_file()), shards[0])
        raise RequestError(f"{folder} lacks {absent}, which its {index.name} lists; copy it there")
    if found is None:
        raise RequestError(f"{folder} has no weights: {STEMS['unet']}.safetensors is missing; copy it there")
    stored = _tensors(tuple(folder / name for name in found.files), found.index and folder / found.index)
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
    refuse_pickle(path)
    if not path.is_file():
        raise RequestError(f"there is no file {path}; give the path of one, or download it first")
    stored = stored_tensors(path)
    tensors = {unwrapped(key): tensor for key, tensor in stored.items()}
    if len(tensors) < len(stored):
        raise RequestError(f"{path} holds some tensors twice, with and without a wrapper's prefix; take another file")
    if any(key.removeprefix(PREFIX).startswith("input_blocks.") for key in tensors):
        tensors = _from_original(tensors)
    spec = _spec({key: tensor.shape for key, tensor in tensors.items()}, str(path))
    with torch.device("meta"):
        network = UNet2DConditionModel(**spec.config())
    return _alone(str(path), spec, spec.config(), matched("unet", path, network, tensors))


def _from_original(tensors: Mapping[str, StoredTensor]) -> dict[str, StoredTensor]:
    """The U-Net's tensors of a file in the original layout, by diffusers' keys; what has none keeps its own."""
    prefix = PREFIX if any(key.startswith(PREFIX) for key in tensors) else ""
    numbers = {key.removeprefix(prefix).split(".")[1] for key in tensors if key.startswith(f"{prefix}input_blocks.")}
    blocks = max((len(numbers) - 3) // 3, 1)  # one number per block, two downsamplers, one for conv_in
    # Names depend on how many blocks a stage has and where attention is, never on its depth.
    shape = replace(
        SDXL,
        down_depths=((0,) * blocks, *[(1,) * blocks] * 2),
        mid_depth=1,
        up_depths=(*[(1,) * (blocks + 1)] * 2, (0,) * (blocks + 1)),
    )
    table = {original: own for own, original in original_names(shape).items()}
    beside = {key: tensor for key, tensor in tensors.items() if key in (*MARKERS, *EDM_MARKERS, "scaled_fp8")}
    inside = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    return {renamed(key, table) or key: tensor for key, tensor in inside.items()} | beside


def _spec(shapes: Mapping[str, tuple[int, ...]], name: str) -> UNetSpec:
    """What the names and shapes of a U-Net's tensors say; head counts and groups are those of its family."""
    blocks: dict[str, set[int]] = {}
    depths: dict[tuple[str, int], int] = {}
    for key in shapes:
        if found := _BLOCK.match(key):
            stage, kind, number, block = found.groups()
            blocks.setdefault(stage, set()).add(int(number))
            at = (stage, int(number))
            depths[at] = max(depths.get(at, 0), int(block) + 1 if block else 0)
    widths = shapes.get("conv_in.weight"), shapes.get("add_embedding.linear_1.weight")
    for family in (SDXL, TINY_SDXL):
        first, added = family.channels[0], family.pooled_dim + 6 * family.time_id_dim
        if widths == ((first, 4, 3, 3), (4 * first, added)):
            break
    else:
        if widths[0] and widths[0][0] == _REFINER:
            raise RequestError(
                f"{name} is the U-Net of SDXL's refiner, which only finishes a picture; take the base model's"
            )
        raise RequestError(
            f"{name} holds no U-Net of SDXL's family: its conv_in and add_embedding are {widths[0]} and {widths[1]}, "
            "not (320, 4, 3, 3) and (1280, 2816)"
        )

    def stage(block: str) -> str:
        return "+".join(str(depths[block, number]) for number in sorted(blocks.get(block, ())))

    down, up = (",".join(stage(f"{side}_blocks.{at}") for at in range(3)) for side in ("down", "up"))
    middle = depths["mid_block", 0] if "mid_block" in blocks else "-"
    try:
        return student(f"{down}/{middle}/{up}", family)
    except RequestError as error:
        raise RequestError(
            f"{name} is no whole U-Net: its blocks are {down}/{middle}/{up}, and {error}; copy or download it again"
        ) from error
