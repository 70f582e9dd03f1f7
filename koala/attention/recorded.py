"""AttentionRecord: the queries and keys of one run's attention layers with all its settings, saved and loaded."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open

from koala.attention.about import check_run, layers_of, spec_of, tuples
from koala.attention.pairing import paired
from koala.attention.plan import Layer
from koala.errors import UserError
from koala.files.hashing import sha256
from koala.files.outputs import new_folder
from koala.files.reading import read_object
from koala.files.tensorfiles import save_tensors
from koala.finite import is_finite
from koala.request import MAX_SIDE
from koala.sampling.result import GenerationResult
from koala.unet.specs import UNetSpec

FORMAT, VERSION = "koala attention", 1
TENSORS, ABOUT, PICTURE = "attention.safetensors", "attention.json", "picture.png"
DTYPES = ("F16", "BF16", "F32")  # of what is recorded
HEADER = 400  # bytes of a tensor's entry in the file at most
PNG = 10**6 + int(3.1 * MAX_SIDE**2)  # bytes of a picture's file: its uncompressed pixels, and its metadata

Frame = Mapping[str, tuple[torch.Tensor, torch.Tensor]]  # path -> q (images, heads, N, d), k (images, heads, M, d)


@dataclass(frozen=True, kw_only=True)
class AttentionRecord:
    """q and k of the planned layers at every step, on the CPU. A map is softmax(q k^T / sqrt d): see `maps`."""

    model: str
    revision: str
    spec: UNetSpec
    prompt: str
    seed: int | None  # None if the pipeline was called directly
    guidance: float | None
    width: int  # px
    height: int  # px
    images: int
    half: str  # of the batch, with guidance: conditional or unconditional
    timesteps: tuple[float, ...]  # one per step, of 0 to 1000
    tokens: tuple[str, ...]  # of the prompt, from start to end; a word's last piece ends in </w>
    overhead_ms: float  # spent on recording, in the whole run
    layers: tuple[Layer, ...]
    frames: tuple[Frame, ...]

    @property
    def steps(self) -> int:
        """The number of steps that were recorded."""
        return len(self.frames)

    @property
    def bytes(self) -> int:
        """Of all queries and keys."""
        return sum(t.nbytes for frame in self.frames for pair in frame.values() for t in pair)

    @property
    def stages(self) -> tuple[str, ...]:
        """The stages that were recorded, in forward order."""
        return tuple(dict.fromkeys(x.stage for x in self.layers))

    def layer(self, stage: str, kind: str = "self", path: str | None = None) -> Layer:
        """The layer of this path, or the stage's last one; UserError if nothing of the kind was recorded."""
        matches = [x for x in self.layers if x.stage == stage and x.kind == kind and path in (None, x.path)]
        if not matches:
            lacks = "" if stage in self.spec.depths() else f"{self.model} has no {stage}. "
            what = f"{stage} {path}" if path else stage
            raise UserError(
                f"{lacks}This capture holds no {kind}-attention of {what}; it holds {', '.join(self.stages)}"
            )
        return matches[-1]

    def at(self, layer: Layer, step: int, image: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
        """q (heads, N, d) and k (heads, M, d) of a layer; steps and pictures count from 0."""
        if not 0 <= step < self.steps:
            raise UserError(f"step {step} is not in this run of {self.steps}: they count from 0 to {self.steps - 1}")
        if not 0 <= image < self.images:
            raise UserError(f"picture {image} is not in this run of {self.images}: they count from 0")
        q, k = self.frames[step][layer.path]
        return q[image], k[image]

    def patch(self, layer: Layer, x: float, y: float) -> int:
        """Index of the layer's patch under a pixel of the picture."""
        if not (0 <= x < self.width and 0 <= y < self.height):
            raise UserError(f"pixel {x:g},{y:g} is outside the picture of {self.width}x{self.height} px")
        rows, columns = layer.grid
        return int(y * rows / self.height) * columns + int(x * columns / self.width)

    def cells(self, layer: Layer, box: tuple[float, float, float, float]) -> tuple[int, int, int, int]:
        """left, top, right, bottom of the layer's patches under a box in px, the last two exclusive."""
        left, top, right, bottom = box
        columns = layer.grid[1]
        first, last = self.patch(layer, left, top), self.patch(layer, right, bottom)
        return first % columns, first // columns, last % columns + 1, last // columns + 1

    def save(self, folder: Path, result: GenerationResult | None = None) -> Path:
        """Write a new folder: tensors, JSON, and the run's picture if its result is given."""
        with new_folder(folder, self.bytes) as out:
            tensors = {
                f"{step}.{path}.{name}": tensor.contiguous()
                for step, frame in enumerate(self.frames)
                for path, pair in frame.items()
                for name, tensor in zip("qk", pair, strict=True)
            }
            save_tensors(out / TENSORS, tensors)
            about = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in ("frames", "layers", "spec")}
            about |= {"spec": asdict(self.spec), "layers": [asdict(x) for x in self.layers], "steps": self.steps}
            about |= {"format": f"{FORMAT} {VERSION}", "sha256": sha256(out / TENSORS)}
            (out / ABOUT).write_text(json.dumps(about, indent=1) + "\n")
            if result:
                (out / PICTURE).write_bytes(result.png())
        return folder

    @classmethod
    def load(cls, folder: Path, model: str | None = None) -> "AttentionRecord":
        """Load a capture that `save` wrote. UserError if it is damaged, foreign, or not of `model`, if given."""
        if not (folder / ABOUT).is_file() or not (folder / TENSORS).is_file():
            raise UserError(f"{folder} is not a capture: it needs {ABOUT} and {TENSORS}, as `koala attention` writes")
        try:
            about = read_object(folder / ABOUT, "copy the capture again")
            check_version(str(folder / ABOUT), about.pop("format"), FORMAT, VERSION)
            digest = about.pop("sha256")
            check_run(about)
            spec = spec_of(about.pop("spec"))
            layers = layers_of(about.pop("layers"), spec, about["width"], about["height"])
            if sha256(folder / TENSORS) != digest:
                raise UserError(f"{folder / TENSORS} is damaged: it is not what was saved; copy it again")
            frames = _frames(folder / TENSORS, layers, about.pop("steps"), about["images"])
            record = cls(spec=spec, layers=layers, frames=frames, **{k: tuples(v) for k, v in about.items()})
        except (
            ValueError,
            TypeError,
            KeyError,
            AttributeError,
            RecursionError,
            RuntimeError,
            SafetensorError,
        ) as error:
            if isinstance(error, UserError):
                raise
            raise UserError(f"{folder / ABOUT} is damaged ({error}); copy the capture again") from error
        if model is not None and record.model != model:
            raise UserError(f"{folder} is a capture of {record.model}, not of {model}; choose that model, or another")
        return record


def _frames(file: Path, layers: Sequence[Layer], steps: int, images: int) -> tuple[Frame, ...]:
    """Queries and keys of every step; ValueError if the file's have other shapes, or are not finite."""
    names = 2 * steps * len(layers)
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
    if length > HEADER * (names + 1):  # unexpected names would take memory too
        raise ValueError(f"{file.name} names more than its {names} tensors")
    with safe_open(file, "pt") as stored:

        def tensor(name: str, shape: tuple[int, ...]) -> torch.Tensor:
            entry = stored.get_slice(name)
            if tuple(entry.get_shape()) != shape or entry.get_dtype() not in DTYPES:
                raise ValueError(f"{name} does not have the expected shape")
            values = stored.get_tensor(name)
            if not is_finite(values):
                raise ValueError(f"{name} holds values that are not finite numbers")
            return values

        return tuple(
            {
                x.path: tuple(
                    tensor(f"{step}.{x.path}.{which}", (images, x.heads, count, x.dim))
                    for which, count in (("q", x.queries), ("k", x.keys))
                )
                for x in layers
            }
            for step in range(steps)
        )


def check_version(file: str, given: object, form: str, reads: int) -> None:
    """UserError for a file of another format, or of a version other than the supported one."""
    name, _, version = str(given).rpartition(" ")
    if name != form or not version.isdecimal():
        raise UserError(f"{file} is not part of a capture; it says {given!r}, not {form} {reads}")
    if int(version) > reads:
        raise UserError(f"{file} was written by a newer koala in format {version}; this one reads {reads}: update it")
    if int(version) < reads:
        raise UserError(f"{file} has format {version}, and this koala reads {reads}; capture the run again")


def picture(folder: Path, record: AttentionRecord) -> Image.Image:
    """The picture that was saved with a capture."""
    file = folder / PICTURE
    if not file.is_file():
        raise UserError(f"{folder} lacks its {PICTURE}; save the record together with its result")
    try:
        with Image.open(file, formats=("PNG",)) as opened:
            if opened.size == (record.width, record.height):
                return opened.convert("RGB")
            size = "x".join(map(str, opened.size))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(f"{file} is damaged ({error}); copy the capture again") from error
    raise UserError(f"{file} is of {size} px, the capture of {record.width}x{record.height}: of another run")


def beside(records: Sequence[AttentionRecord]) -> dict[str, list[tuple[Layer | None, ...]]]:
    """Stage -> rows of recorded self-attention layers that pair; None for a model that has none.

    A layer whose counterpart was not recorded is left out.
    """
    recorded = [{x.path: x for x in record.layers if x.kind == "self"} for record in records]
    by_stage = {}
    for stage, rows in paired([record.spec for record in records], every=True).items():
        whole = [row for row in rows if all(p is None or p in own for p, own in zip(row, recorded, strict=True))]
        if whole:
            by_stage[stage] = [tuple(own.get(p) for p, own in zip(row, recorded, strict=True)) for row in whole]
    return by_stage
