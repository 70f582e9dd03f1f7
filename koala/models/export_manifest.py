"""An exported model on disk: its manifest export.json, and whether the files are still those that it lists."""

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from koala.errors import UserError
from koala.files.fields import Fields, is_text, is_whole
from koala.files.hashing import digest
from koala.files.reading import read_object
from koala.models.sampling_defaults import read_defaults
from koala.request import MAX_LORA_STRENGTH

MANIFEST = "export.json"
FORMAT = 1  # of the manifest; a later one is refused by an older reader
UNET = "unet/model.onnx"
COMPONENTS = ("unet", "text_encoder", "text_encoder_2", "vae_decoder", "vae_encoder")
STORED = ("float16", "float32")
DTYPES = (*STORED, "dynamic-int8", "weight-only-int8")
ELEMENTS = ("float16", "float32", "int64", "int32", "bool")  # of a graph's inputs and outputs, as numpy names them
AGAIN = "copy it again, or export the model again"


@dataclass(frozen=True, kw_only=True)
class Component:
    """One ONNX graph: its files with their SHA-256, and what it takes and gives."""

    files: Mapping[str, str]  # path within the folder -> SHA-256
    inputs: Mapping[str, tuple]  # name -> (element type, dimensions: a number or a name)
    outputs: Mapping[str, tuple]
    dtype: str  # of its weights
    opset: int
    parameters: int


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What an export is and where it comes from: the content of export.json."""

    model: str  # name of the registry, hub id, or a folder's last name: shared files must not contain local paths
    title: str
    revision: str  # hub commit, or "local"
    licence: str
    spec: str  # the U-Net's name in `koala.unet.specs`
    target: str
    dtype: str  # of the U-Net's weights: float16, float32, dynamic-int8 or weight-only-int8
    stored_dtype: str  # of what is not in 8 bits, and of the inputs: float16 or float32
    components: Mapping[str, Component]
    source: Mapping[str, str]  # file of the source -> SHA-256
    defaults: Mapping[str, object]  # scheduler, steps, guidance, width, height
    profile: Mapping[str, Mapping[str, tuple[int, ...]]]  # input -> min, opt, max shape
    versions: Mapping[str, str]
    islands: tuple[str, ...] = ()  # modules of the U-Net that compute in fp32, since they overflow fp16
    lora: Mapping[str, object] | None = None  # name, SHA-256 and strength of one that was fused
    parity: Mapping[str, object] = field(default_factory=dict)  # the gates' figures
    format: int = FORMAT

    @property
    def whole(self) -> bool:
        """Whether text encoders and VAE were exported too."""
        return len(self.components) > 1

    @classmethod
    def read(cls, folder: Path) -> "Exported":
        """The manifest of a folder, every field of it checked.

        UserError where there is none, it is damaged, or a later program wrote it.
        """
        file = folder / MANIFEST
        if not folder.is_dir() or not os.path.lexists(file):
            raise UserError(
                f"{folder} is not an export: it has no {MANIFEST}. "
                "Make one with python -m koala export --model MODEL --out DIR"
            )
        if not file.is_file():
            raise UserError(f"{file} is not a file; {AGAIN}")
        return read(Fields(values=read_object(file, AGAIN), file=str(file), remedy=AGAIN))

    def write(self, folder: Path) -> None:
        """Write the manifest into the folder of the export."""
        (folder / MANIFEST).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    def check(self, folder: Path) -> None:
        """UserError for a file that is missing, or is not the one that was exported."""
        for component in self.components.values():
            for name, sha256 in component.files.items():
                if not (folder / name).is_file():
                    raise UserError(f"{folder} is not whole: {name} is missing; copy it again, or export again")
                if digest(folder / name) != sha256:
                    raise UserError(
                        f"{folder / name} was changed after the export: its SHA-256 is not the one in {MANIFEST}. "
                        "Export the model again, or copy the file again"
                    )


_NAME = r"[\w./-]{1,200}"  # of a tensor, a dimension, a module or a file in the folder
_PATH = rf"(?!/)(?!.*\.\.){_NAME}"
_SHA256 = r"[0-9a-f]{64}"
_KINDS = ("min", "opt", "max")
_PICTURES = ("pictures", "psnr_mean", "ssim_mean", "verdicts_differ")


def read(own: Fields) -> Exported:
    """A manifest's fields as an Exported; UserError for the first invalid one."""
    version = own.whole("format", 1, 10**6)
    if version > FORMAT:
        raise UserError(
            f"{own.file} is of format {version}, and this program reads up to {FORMAT}; update it, or export the model "
            "again"
        )
    own.only([field.name for field in dataclasses.fields(Exported)])
    components = own.object("components")
    components.only(COMPONENTS)
    parts = {name: _component(part) for name, part in components.objects()}
    if UNET not in (parts["unet"].files if "unet" in parts else ()):
        raise components.wrong("unet", f"a component with the file {UNET}")
    return Exported(
        components=parts,
        source=_texts(own.object("source"), _SHA256),
        defaults=read_defaults(own.object("defaults")),
        profile=_profile(own.object("profile")),
        versions=_texts(own.object("versions")),
        islands=own.each("islands", lambda name: is_text(name, _NAME), "modules", ()),
        lora=_lora(own),
        parity=_parity(own.object("parity", {})),
        format=version,
        dtype=own.text("dtype", of=DTYPES),
        stored_dtype=own.text("stored_dtype", of=STORED),
        **{name: own.text(name) for name in ("model", "title", "revision", "licence", "spec", "target")},
    )


def _texts(own: Fields, like: str = r".{0,200}") -> dict[str, str]:
    return {name: own.text(name, like=like) for name in own.values}


def _component(own: Fields) -> Component:
    own.only([field.name for field in dataclasses.fields(Component)])
    files = own.object("files")
    for name in files.values:
        if not is_text(name, _PATH):
            raise files.wrong(name, "a file within the folder")
    return Component(
        files=_texts(files, _SHA256),
        inputs=_values(own.object("inputs")),
        outputs=_values(own.object("outputs")),
        dtype=own.text("dtype", of=DTYPES),
        opset=own.whole("opset", 1, 1000),
        parameters=own.whole("parameters", 0, 10**12),
    )


def _values(own: Fields) -> dict[str, tuple]:
    """Name -> (element type, dimensions)."""

    def is_dim(dim: object) -> bool:
        return is_whole(dim, 0, 10**9) or is_text(dim, _NAME)

    for name, value in own.values.items():
        pair = isinstance(value, list | tuple) and len(value) == 2
        if not pair or value[0] not in ELEMENTS or not isinstance(value[1], list | tuple) or not is_text(name, _NAME):
            raise own.wrong(name, "an element type and a list of dimensions")
        if len(value[1]) > 8 or not all(map(is_dim, value[1])):
            raise own.wrong(name, "an element type and a list of dimensions")
    return {name: tuple(value) for name, value in own.values.items()}


def _profile(own: Fields) -> dict[str, dict[str, tuple[int, ...]]]:
    """Input -> its shapes; of `sample` the last two dimensions are read, as sides in latents."""
    profile = {}
    for name, shapes in own.objects():
        shapes.only(_KINDS)
        profile[name] = {
            kind: shapes.each(kind, lambda side: is_whole(side, 1, 10**6), "whole numbers") for kind in _KINDS
        }
    if any(len(shape) != 4 for shape in profile.get("sample", {"min": ()}).values()):
        raise own.wrong("sample", "shapes of four dimensions")
    return profile


def _lora(own: Fields) -> dict[str, object] | None:
    if own.values.get("lora") is None:
        return None
    lora = own.object("lora")
    lora.only(("name", "sha256", "strength"))
    limit = MAX_LORA_STRENGTH
    return {
        "name": lora.text("name"),
        "sha256": lora.text("sha256", like=_SHA256),
        "strength": lora.number("strength", -limit, limit),
    }


def _parity(own: Fields) -> dict[str, object]:
    """The gates that passed or were skipped by name, and figures of some, as `koala.export.verify` writes them."""
    for name in ("passed", "skipped") if own.values else ():
        own.each(name, lambda gate: is_text(gate, _NAME), "gates")
    for gate in own.values.keys() & {"numbers", "parts", "range"}:
        if not _are_numbers(own.object(gate).values.values()) or not own.values[gate]:
            raise own.wrong(gate, "figures")
    if "pictures" in own.values:
        file = own.object("pictures").object("file")
        if not _are_numbers(file.values.get(name) for name in _PICTURES):
            raise own.wrong("pictures", f"figures of the file: {', '.join(_PICTURES)}")
    return dict(own.values)


def _are_numbers(values: Iterable[object]) -> bool:
    return all(isinstance(value, int | float) for value in values)


def exports_root() -> Path:
    """The folder in which exports are found by name: $KOALA_EXPORTS, else exports/ in the working directory."""
    return Path(os.environ.get("KOALA_EXPORTS") or "exports").absolute()


def list_exports(root: Path) -> list[Path]:
    """Every folder with a manifest, readable or not, the newest first; none where the root cannot be read."""
    exports = []
    with contextlib.suppress(OSError), os.scandir(root) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):  # a folder that is locked, or being removed
                if not entry.name.startswith(".") and entry.is_dir():
                    modified = os.lstat(Path(entry.path, MANIFEST)).st_mtime_ns
                    exports.append((modified, entry.name))
    return [root / name for _, name in sorted(exports, reverse=True)]


def find_export(name: str) -> Path:
    """The export of a model's name, or in a folder; UserError with the command that makes one."""
    if os.path.lexists(Path(name) / MANIFEST):
        return Path(name)
    damaged = ""
    for folder in list_exports(exports_root()):
        try:
            export = Exported.read(folder)
        except UserError as error:  # a damaged export does not hide the others
            damaged += f" ({error})"
            continue
        if export.model == (Path(name).resolve().name if Path(name).is_dir() else name):
            return folder
    short = Path(name).name
    raise UserError(
        f"there is no export of {name} in {exports_root()}; make it with "
        f"python -m koala export --model {name} --out {exports_root() / short}{damaged}"
    )
