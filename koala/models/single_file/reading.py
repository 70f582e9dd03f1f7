"""What one safetensors file holds, by component and under diffusers' names. Only its header is read, and one tensor.

The U-Net's spec follows from its tensors' names and shapes. A tensor that the original layout stores in another form is
a view of its bytes: q, k and v of the second text encoder are rows of one matrix, its projection is transposed.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from koala.errors import UserError
from koala.files.tensorfiles import StoredTensor, Streamed, Transposed, read_header, refuse_pickle
from koala.models.accounting import unwrapped
from koala.models.semantics import EDM_MARKERS, MARKERS
from koala.models.single_file.part_names import TEXT_2_PREFIX, TEXT_PREFIX, VAE_PREFIX, text_2_names, vae_names
from koala.unet.layer_map import renamed
from koala.unet.original_layout import PREFIX, original_names
from koala.unet.specs import SDXL, SPECS, TINY_SDXL, UNetSpec, student

log = logging.getLogger(__name__)

_REFINER = 384  # channels of its first convolution
_BLOCK = re.compile(r"(down_blocks\.\d|mid_block|up_blocks\.\d)\.(resnets|attentions)\.(\d)(?:.+_blocks\.(\d+))?")
_MIDDLE = "mid_block.resnets.0."
_LAST_OF_MIDDLE = (f"{_MIDDLE}conv2.weight", f"{_MIDDLE}conv2.bias")
# What SDXL's own files hold that no drawing needs: CLIP's temperature, numbered positions, the sampler's noise levels.
_UNUSED = re.compile(r"(conditioner\.embedders\.\d\..*(logit_scale|position_ids)|denoiser\.sigmas)$")
_VAE_LEVELS = 4


@dataclass(frozen=True, kw_only=True)
class SingleFile:
    """A U-Net, and the parts around it that the same file holds."""

    path: Path
    spec: UNetSpec
    unet: Mapping[str, StoredTensor]  # by diffusers' key; whatever else is with them keeps its own
    parts: Mapping[str, Mapping[str, Streamed]]  # text_encoder, text_encoder_2, vae: those that are there
    metadata: Mapping[str, str]  # the header's own words
    markers: tuple[str, ...]  # of semantics.MARKERS


def read_single_file(path: Path) -> SingleFile:
    """The file's contents, remembered until it changes.

    UserError for a pickle, a file that is not there or not whole, and one that holds no U-Net of SDXL's family.
    """
    refuse_pickle(path)
    if not path.is_file():
        raise UserError(f"there is no file {path}; give the path of one, or download it first")
    path = path.resolve()
    stat = path.stat()
    return _remembered(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=16)
def _remembered(path: Path, size: int, modified: int) -> SingleFile:
    stored, metadata = read_header(path)
    tensors = {unwrapped(key): tensor for key, tensor in stored.items()}
    if len(tensors) < len(stored):
        raise UserError(f"{path} holds some tensors twice, with and without a wrapper's prefix; take another file")
    whole = any(key.startswith(PREFIX) for key in tensors)
    if whole or any(key.startswith("input_blocks.") for key in tensors):
        unet = _from_original(tensors, PREFIX if whole else "")
    else:
        unet = tensors
    parts = _parts(tensors) if whole else {}
    if whole:
        _say_left_out(path, tensors, parts)
    unet, spec = _told_by(unet, str(path))
    return SingleFile(
        path=path,
        spec=spec,
        unet=unet,
        parts=parts,
        metadata=metadata,
        markers=tuple(marker for marker in MARKERS if marker in tensors),
    )


def _from_original(tensors: Mapping[str, StoredTensor], prefix: str) -> dict[str, StoredTensor]:
    """The U-Net's tensors of a file in the original layout, by diffusers' keys; what has none keeps its own."""
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
    markers = {key: tensor for key, tensor in tensors.items() if key in (*MARKERS, *EDM_MARKERS, "scaled_fp8")}
    inside = {key.removeprefix(prefix): tensor for key, tensor in tensors.items() if key.startswith(prefix)}
    return {renamed(key, table) or key: tensor for key, tensor in inside.items()} | markers


def _parts(tensors: Mapping[str, StoredTensor]) -> dict[str, dict[str, Streamed]]:
    """The components around the U-Net, by transformers' and diffusers' names; one without any tensor is left out."""
    parts = {
        "text_encoder": {
            f"text_model.{key.removeprefix(TEXT_PREFIX)}": tensor
            for key, tensor in tensors.items()
            if key.startswith(TEXT_PREFIX)
        },
        "text_encoder_2": _text_2({k: t for k, t in tensors.items() if k.startswith(TEXT_2_PREFIX)}),
        "vae": _vae({k: t for k, t in tensors.items() if k.startswith(VAE_PREFIX)}),
    }
    return {part: own for part, own in parts.items() if own}


def _text_2(tensors: Mapping[str, StoredTensor]) -> dict[str, Streamed]:
    renamed_tensors: dict[str, Streamed] = {}
    for key, tensor in tensors.items():
        own = text_2_names(key)
        if len(own) == 3:  # q, k and v are a third of the rows each
            third = tensor.shape[0] // 3
            renamed_tensors |= {name: tensor.rows(k * third, third) for k, name in enumerate(own)}
        elif own == ("text_projection.weight",) and not key.endswith(".weight"):
            renamed_tensors[own[0]] = Transposed(stored=tensor)
        elif own:
            renamed_tensors[own[0]] = tensor
        elif not _UNUSED.search(key):
            renamed_tensors[key] = tensor
    return renamed_tensors


def _vae(tensors: Mapping[str, StoredTensor]) -> dict[str, Streamed]:
    blocks = {int(n) for key in tensors for n in re.findall(r"encoder\.down\.0\.block\.(\d+)\.", key)}
    table = {its: own for own, its in vae_names(_VAE_LEVELS, len(blocks) or 2, old=False).items()}
    renamed_tensors = {}
    for key, tensor in tensors.items():
        own = renamed(key.removeprefix(VAE_PREFIX), table)
        if own and ".attentions." in own and len(tensor.shape) == 4:  # the original's are 1x1 convolutions
            tensor = replace(tensor, shape=tensor.shape[:2])
        renamed_tensors[own or key] = tensor
    return renamed_tensors


def _say_left_out(path: Path, tensors: Iterable[str], parts: Mapping[str, object]) -> None:
    """A warning for tensors of no component; what is in one is accounted for when it is loaded."""
    places = (PREFIX, TEXT_PREFIX, TEXT_2_PREFIX, VAE_PREFIX)
    known = (*MARKERS, *EDM_MARKERS, "scaled_fp8")
    left = sorted(k for k in tensors if not k.startswith(places) and k not in known and not _UNUSED.search(k))
    if left:
        more = f" and {len(left) - 1:,} more tensors" if len(left) > 1 else ""
        log.warning("%s: %s%s belong to no part of SDXL and are left out", path, left[0], more)


def _told_by(unet: dict[str, StoredTensor], name: str) -> tuple[dict[str, StoredTensor], UNetSpec]:
    """The spec, and the U-Net's tensors without a middle block that changes nothing.

    Files of a U-Net without a middle block carry such a one, as some programs always build it (see `writing`).
    """
    if any(key.startswith(_MIDDLE) for key in unet) and not any("mid_block.attentions." in key for key in unet):
        if all(_is_zero(unet[key]) for key in _LAST_OF_MIDDLE if key in unet):
            unet = {key: tensor for key, tensor in unet.items() if not key.startswith(_MIDDLE)}
        else:
            _say_changed_middle({key: tensor.shape for key, tensor in unet.items()}, name)
    return unet, spec_of({key: tensor.shape for key, tensor in unet.items()}, name)


def _is_zero(tensor: StoredTensor) -> bool:
    """Whether all of it is zero, of either sign."""
    signs = {"F16": b"\x80", "BF16": b"\x80", "F32": b"\x80", "F64": b"\x80"}.get(tensor.dtype, b"")
    return all(not block.strip(b"\0" + signs) for block in tensor.blocks())


def _say_changed_middle(shapes: Mapping[str, tuple[int, ...]], name: str) -> None:
    """A warning where a spec that has no middle block got one: it was merged or trained as such elsewhere."""
    spec = spec_of(shapes, name)
    without = [s for s in SPECS.values() if s == replace(spec, name=s.name, mid_depth=None)]
    if without:
        log.warning(
            "%s has the depths of %s, but its middle block does something: it was merged or trained elsewhere, and is "
            "read as a middle block without attention",
            name,
            without[0].name,
        )


def spec_of(shapes: Mapping[str, tuple[int, ...]], name: str) -> UNetSpec:
    """What the names and shapes of a U-Net's tensors say; head counts and groups are those of its family."""
    blocks: dict[str, set[int]] = {}
    depths: dict[tuple[str, int], int] = {}
    for key in shapes:
        if match := _BLOCK.match(key):
            stage, kind, number, block = match.groups()
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
            raise UserError(
                f"{name} is the U-Net of SDXL's refiner, which only finishes a picture; take the base model's"
            )
        raise UserError(
            f"{name} holds no U-Net of SDXL's family: its conv_in and add_embedding are {widths[0]} and {widths[1]}, "
            "not (320, 4, 3, 3) and (1280, 2816)"
        )

    def stage(block: str) -> str:
        return "+".join(str(depths[block, number]) for number in sorted(blocks.get(block, ())))

    down, up = (",".join(stage(f"{side}_blocks.{at}") for at in range(3)) for side in ("down", "up"))
    middle = depths["mid_block", 0] if "mid_block" in blocks else "-"
    try:
        return student(f"{down}/{middle}/{up}", family)
    except UserError as error:
        raise UserError(
            f"{name} is not a whole U-Net: its blocks are {down}/{middle}/{up}, and {error}; copy or download it again"
        ) from error
