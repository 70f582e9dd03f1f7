"""Writes a whole model as one safetensors file in SDXL's original layout, as other UIs read it.

Weights are stored in fp16, the VAE's too, as in Stability's own SDXL file: a UI computes a VAE in whatever type it
finds safe, and half precision on disk does not decide that. Every tensor is renamed and streamed; none is held whole
but the pooled text projection, which the original keeps transposed.
"""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

import koala
from koala.errors import UserError
from koala.files.hashing import digest
from koala.files.outputs import check_file, new_file
from koala.files.reading import read_object
from koala.files.tensorfiles import StoredTensor, content_sha256, write_tensors
from koala.models.cards import ModelCard
from koala.models.checkpoints import UNetCheckpoint, open_unet
from koala.models.layout import STEMS
from koala.models.registry import drawing_of, find
from koala.models.semantics import INDEX, SCHEDULER, UNET, VAE, VELOCITY, ZERO_SNR, check_single_file, zeros_for_empty
from koala.models.single_file.header import CARRIED, KEY
from koala.models.single_file.part_names import VAE_PREFIX, text_2_name, text_name, vae_names
from koala.unet.layer_map import renamed
from koala.unet.original_layout import PREFIX, original_names
from koala.unet.part_configs import check_vae
from koala.unet.parts import SDXL_PARTS
from koala.unet.specs import KOALA_1B, KOALA_700M, SDXL, SSD_1B, VEGA, UNetSpec
from koala.words import megabytes

# The U-Nets that ComfyUI knows, by the transformer depths of their encoders at SDXL's widths.
_KNOWN = {
    spec.down_depths: title
    for spec, title in (
        (SDXL, "SDXL"),
        (KOALA_700M, "KOALA-700M"),
        (KOALA_1B, "KOALA-1B"),
        (SSD_1B, "SSD-1B"),
        (VEGA, "Segmind-Vega"),
    )
}

_SCALING_FACTOR = SDXL_PARTS.vae.scaling_factor  # of SDXL's latents, which a file in this layout does not say
_IDENTITY = (
    "{} more tensors are a middle block that changes nothing: this U-Net has none, and Forge would compute with "
    "whatever is in memory"
)
_DTYPES = {
    "F16": torch.float16,
    "F32": torch.float32,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,  # plain ones; scaled ones are refused where a model is opened
    "F8_E5M2": torch.float8_e5m2,
}
_LARGEST = torch.finfo(torch.float16).max
_SAMPLERS = {  # as UIs name them
    "euler-trailing": "Euler, trailing timesteps (sgm_uniform)",
    "euler-linspace": "Euler, evenly spaced timesteps (normal)",
    "euler-leading": "Euler, leading timesteps (normal)",
    "euler-ancestral-trailing": "Euler ancestral, trailing timesteps (sgm_uniform)",
    "ddim-trailing": "DDIM, trailing timesteps (sgm_uniform)",
    "dpmpp-2m-trailing": "DPM++ 2M, trailing timesteps (sgm_uniform)",
    "lcm": "LCM",
    "tcd": "TCD",
}


@dataclass(frozen=True, kw_only=True)
class _InHalf:
    """A tensor of the new file."""

    shape: tuple[int, ...]
    dtype: str = "F16"

    @property
    def parameters(self) -> int:
        """How many numbers it holds."""
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes."""
        return 2 * self.parameters


@dataclass(frozen=True, kw_only=True)
class Half(_InHalf):
    """Stored tensors one after the other (rows below rows), as one tensor in fp16."""

    parts: tuple[StoredTensor, ...]
    transposed: bool = False  # a matrix whose rows become columns

    @property
    def converted(self) -> bool:
        """Whether it was not in fp16 before."""
        return any(part.dtype != "F16" for part in self.parts)

    def blocks(self) -> Iterator[bytes]:
        """Its bytes in their order; UserError where fp16 cannot hold a weight."""
        halves = (_half(block, part) for part in self.parts for block in part.blocks())
        if self.transposed:
            rows = torch.frombuffer(bytearray(b"".join(halves)), dtype=torch.float16).view(self.shape[::-1])
            yield rows.T.contiguous().numpy().tobytes()
        else:
            yield from halves


@dataclass(frozen=True, kw_only=True)
class Constant(_InHalf):
    """A tensor in fp16 that is one number everywhere."""

    value: float

    def blocks(self) -> Iterator[bytes]:
        """Its bytes, a row at a time."""
        row = torch.full(self.shape[1:], self.value, dtype=torch.float16).numpy().tobytes()
        for _ in range(self.shape[0]):
            yield row


def identity_middle(spec: UNetSpec) -> dict[str, Constant]:
    """A middle block that changes nothing, by original name; empty for a spec that has a middle block of its own.

    Forge builds one for every U-Net, and leaves the weights that a file lacks as they come out of memory. This one's
    last convolution is zero, and a residual block adds what that gives to its input.
    """
    if spec.mid_depth is not None:
        return {}
    wide, time = spec.channels[-1], 4 * spec.channels[0]
    shapes = {
        "in_layers.0.weight": (wide,),
        "in_layers.0.bias": (wide,),
        "in_layers.2.weight": (wide, wide, 3, 3),
        "in_layers.2.bias": (wide,),
        "emb_layers.1.weight": (wide, time),
        "emb_layers.1.bias": (wide,),
        "out_layers.0.weight": (wide,),
        "out_layers.0.bias": (wide,),
        "out_layers.3.weight": (wide, wide, 3, 3),
        "out_layers.3.bias": (wide,),
    }
    norms = ("in_layers.0.weight", "out_layers.0.weight")
    return {
        f"{PREFIX}middle_block.0.{name}": Constant(value=float(name in norms), shape=shape)
        for name, shape in shapes.items()
    }


def _markers(checkpoint: UNetCheckpoint) -> dict[str, Constant]:
    """Empty tensors that mark a U-Net that predicts the velocity, and a noise schedule that ends in pure noise."""
    scheduler = read_object(checkpoint.pipeline[SCHEDULER])
    names = [VELOCITY] if scheduler.get("prediction_type") == "v_prediction" else []
    names += [ZERO_SNR] if names and scheduler.get("rescale_betas_zero_snr") else []
    return {marker: Constant(value=0.0, shape=(0,)) for marker in names}


def _half(block: bytes, part: StoredTensor) -> bytes:
    if part.dtype == "F16":
        return block
    values = torch.frombuffer(bytearray(block), dtype=_DTYPES[part.dtype]).float()
    if values.abs().max() > _LARGEST:
        raise UserError(
            f"{part.file} has a weight that fp16 cannot hold, {part.name}; a single file of it would draw nothing; "
            "keep the model as a folder"
        )
    return values.half().numpy().tobytes()


@dataclass(frozen=True, kw_only=True)
class SingleFileReport:
    """What was written, and what ComfyUI will detect it as."""

    model: str
    revision: str
    file: str
    bytes: int
    content_sha256: str  # of everything behind the header
    tensors: int
    parameters: int  # of the model's own weights
    identity: int  # tensors of a middle block that changes nothing, which some programs need
    converted: int  # tensors that were not in fp16 before
    detected: str | None  # ComfyUI's model; None where its tables have no such U-Net

    def lines(self) -> list[str]:
        """As text, for a terminal."""
        known = f"ComfyUI takes it for {self.detected}; put it into models/checkpoints and use Load Checkpoint"
        unknown = "its U-Net is in no table of ComfyUI's, which will refuse it; diffusers reads it with its config"
        return [
            f"{self.file}: {self.tensors:,} tensors, {self.parameters:,} parameters, {megabytes(self.bytes)} in "
            f"fp16, {self.converted:,} tensors converted",
            known if self.detected else unknown,
            *([_IDENTITY.format(self.identity)] if self.identity else []),
            f"SHA-256 of the content: {self.content_sha256}",
        ]


def write_single_file(model: str, out: Path) -> SingleFileReport:
    """Write a model (a name, a hub id that was fetched, a folder or a file) as one file.

    UserError before anything is written.
    """
    if out.suffix.lower() != ".safetensors":
        raise UserError(f"{out} must end in .safetensors; other formats can run code when they are read")
    card, checkpoint = find(model), open_unet(model)
    if checkpoint.pipeline is None:
        raise UserError(f"{model} is a U-Net alone; one file holds a whole model, so name a pipeline's folder")
    _check_assumptions(checkpoint)
    own, identity = original_tensors(checkpoint), identity_middle(checkpoint.spec)
    tensors = own | identity | _markers(checkpoint)
    size = sum(tensor.size for tensor in tensors.values())
    check_file(out, size)
    content = content_sha256(tensors)
    with new_file(out) as partial:
        write_tensors(partial, tensors, _metadata(card, checkpoint, content))
    return SingleFileReport(
        model=card.name,
        revision=checkpoint.revision,
        file=str(out),
        bytes=out.stat().st_size,
        content_sha256=content,
        tensors=len(own),
        parameters=sum(tensor.parameters for tensor in own.values()),
        identity=len(identity),
        converted=sum(tensor.converted for tensor in own.values()),
        detected=detected(checkpoint.spec),
    )


def detected(spec: UNetSpec) -> str | None:
    """What ComfyUI detects a U-Net as, from the encoder's depths at SDXL's widths."""
    widths = (spec.channels, spec.cross_attention_dim, spec.pooled_dim + 6 * spec.time_id_dim)
    if widths != (SDXL.channels, SDXL.cross_attention_dim, SDXL.pooled_dim + 6 * SDXL.time_id_dim):
        return None
    return _KNOWN.get(spec.down_depths)


def original_tensors(checkpoint: UNetCheckpoint) -> dict[str, Half]:
    """Every tensor of the file by its original name. UserError for one that the layout has no place for."""
    rest = checkpoint.pipeline
    check_vae(rest["vae/config.json"])
    vae = read_object(rest["vae/config.json"])
    names = {
        "text_encoder": text_name,
        "text_encoder_2": text_2_name,
        "vae": _by_table(VAE_PREFIX, vae_names(len(vae["block_out_channels"]), vae["layers_per_block"])),
    }
    tensors = _placed(checkpoint.tensors, _by_table(PREFIX, original_names(checkpoint.spec)), "unet")
    for part, name in names.items():
        tensors |= _placed(checkpoint.parts[part].tensors, name, part)
    return tensors


def _by_table(prefix: str, table: Mapping[str, str]) -> Callable[[str], str | None]:
    def name(key: str) -> str | None:
        own_name = renamed(key, table)
        return own_name and prefix + own_name

    return name


def _placed(stored: Mapping[str, StoredTensor], name: Callable[[str], str | None], owner: str) -> dict[str, Half]:
    """The tensors of one component under their original names; those that share a name become one, in their order."""
    places: dict[str, list[StoredTensor]] = {}
    for key in sorted(stored, key=_fused_order):
        if key.endswith("position_ids"):  # a buffer of older text encoders: 0 .. 76
            continue
        place = name(key)
        if place is None:
            raise UserError(f"SDXL's single-file layout has no place for {key} of the {owner}; nothing was written")
        if stored[key].dtype not in _DTYPES:
            raise UserError(
                f"{key} of the {owner} is {stored[key].dtype}; a single file is made of {', '.join(_DTYPES)} weights"
            )
        places.setdefault(place, []).append(stored[key])
    return {place: _joined(place, parts) for place, parts in places.items()}


def _fused_order(key: str) -> int:
    """Queries before keys before values, as OpenCLIP stacks them."""
    match = re.search(r"\.([qkv])_proj\.", key)
    return "qkv".index(match[1]) if match else 0


def _joined(place: str, parts: list[StoredTensor]) -> Half:
    shape = parts[0].shape
    if place.endswith("text_projection"):
        return Half(parts=tuple(parts), shape=shape[::-1], transposed=True)
    if place.startswith(VAE_PREFIX) and ".attn_1." in place and len(shape) == 2:
        shape = (*shape, 1, 1)  # the original VAE's attention is made of 1x1 convolutions
    return Half(parts=tuple(parts), shape=(len(parts) * shape[0], *shape[1:]))


def _check_assumptions(checkpoint: UNetCheckpoint) -> None:
    """UserError where a model differs from SDXL in something that the file cannot express."""
    check_single_file(checkpoint.name, checkpoint.pipeline | {UNET: checkpoint.pipeline[INDEX].parent / UNET})
    if checkpoint.spec.channels == SDXL.channels:  # the embedded models' latents have their own scale
        own = read_object(checkpoint.pipeline[VAE]).get("scaling_factor")
        if own != _SCALING_FACTOR:
            raise UserError(
                f"{checkpoint.name} has scaling_factor {own!r} in {VAE}; a single file cannot say so, and its readers "
                f"assume {_SCALING_FACTOR}, so it would draw wrong pictures; keep the model as a folder"
            )


def _metadata(card: ModelCard, checkpoint: UNetCheckpoint, content: str) -> dict[str, str]:
    """The header's words: the keys of Stability's ModelSpec that UIs show, and where every weight comes from."""
    name = card.name if card.on_hub or card.embedded else card.title  # never the path of a folder
    sources = _hashes("unet", checkpoint.tensors)
    for part, stored in sorted(checkpoint.parts.items()):
        sources |= _hashes(part, stored.tensors)
    provenance = {
        "model": name,
        "revision": checkpoint.revision,
        "unet": checkpoint.spec.notation,
        "source_sha256": sources,
        "version": koala.__version__,
        "configs": _configs(checkpoint),
        **drawing_of(card),
    }
    velocity = read_object(checkpoint.pipeline[SCHEDULER]).get("prediction_type") == "v_prediction"
    return {
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": "stable-diffusion-xl-v1-base",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": card.title.removesuffix(f" ({Path(card.source).name})"),  # of a file that is written again
        "modelspec.license": card.licence,
        "modelspec.resolution": f"{card.width}x{card.height}",
        "modelspec.prediction_type": "v" if velocity else "epsilon",
        "modelspec.usage_hint": f"{_SAMPLERS[card.scheduler]}, {card.steps} steps, guidance {card.guidance:g}",
        "modelspec.hash_sha256": f"0x{content}",
        KEY: json.dumps(provenance, sort_keys=True),
    }


def _configs(checkpoint: UNetCheckpoint) -> dict[str, dict]:
    """The small configs for which the layout has no place, without the paths that libraries leave in them."""
    files = {name: checkpoint.pipeline[name] for name in CARRIED if name in checkpoint.pipeline}
    configs = {name: read_object(file) for name, file in files.items()} | {UNET: checkpoint.config}
    configs[INDEX] = {"force_zeros_for_empty_prompt": zeros_for_empty(checkpoint.pipeline[INDEX])}
    private = ("_name_or_path", "_attn_implementation_autoset", "_use_default_values", "_commit_hash")
    return {name: {k: v for k, v in config.items() if k not in private} for name, config in configs.items()}


def _hashes(part: str, tensors: Mapping[str, StoredTensor]) -> dict[str, str]:
    """SHA-256 of the files that hold a component, by the name that a pipeline has for a whole one."""
    files = sorted({tensor.file for tensor in tensors.values()})
    if len(files) == 1 and part != "unet":
        return {f"{part}/{STEMS[part]}.safetensors": digest(files[0])}
    return {f"{part}/{file.name}": digest(file) for file in files}
