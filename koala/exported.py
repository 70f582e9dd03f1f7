"""An exported model as it lies on disk: what export.json says, and whether the files are still those that it names."""

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from koala.hashing import digest
from koala.request import RequestError

MANIFEST = "export.json"
FORMAT = 1  # of the manifest; a later one is refused by an older reader
UNET = "unet/model.onnx"


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
    """What an export is and where it comes from; export.json."""

    model: str  # name of the registry, hub id, or a folder's last name: files that travel tell no one's paths
    title: str
    revision: str  # hub commit, or "local"
    licence: str
    spec: str  # the U-Net's name in `koala.specs`
    target: str
    dtype: str  # of the U-Net's weights: float16, float32, dynamic-int8 or weight-only-int8
    stored_dtype: str  # of what is not in 8 bits, and of the inputs: float16 or float32
    components: Mapping[str, Component]
    source: Mapping[str, str]  # file of the source -> SHA-256
    defaults: Mapping[str, object]  # scheduler, steps, guidance, width, height: how the model wants to be run
    profile: Mapping[str, Mapping[str, tuple[int, ...]]]  # input -> min, opt, max shape
    versions: Mapping[str, str]
    islands: tuple[str, ...] = ()  # modules of the U-Net that compute in fp32, for fp16 cannot hold what they do
    lora: Mapping[str, object] | None = None  # name, SHA-256 and strength of one that was fused
    parity: Mapping[str, object] = field(default_factory=dict)  # the gates' figures
    format: int = FORMAT

    @property
    def whole(self) -> bool:
        """Whether text encoders and VAE came along."""
        return len(self.components) > 1

    @classmethod
    def read(cls, folder: Path) -> "Exported":
        """The manifest of a folder. RequestError where there is none, or a later program wrote it."""
        file = folder / MANIFEST
        try:
            values = json.loads(file.read_text())
            if values["format"] > FORMAT:
                raise RequestError(
                    f"{file} is of format {values['format']}, and this program reads up to {FORMAT}; update it, or "
                    "export the model again"
                )
            values["components"] = {name: Component(**found) for name, found in values["components"].items()}
            return cls(**values)
        except (FileNotFoundError, NotADirectoryError) as error:
            raise RequestError(
                f"{folder} is no export: it has no {MANIFEST}. Make one with python -m export --model MODEL --out DIR"
            ) from error
        except RequestError:
            raise
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise RequestError(f"{file} is damaged ({error}); export the model again") from error

    def write(self, folder: Path) -> None:
        """Write the manifest into the folder of the export."""
        (folder / MANIFEST).write_text(json.dumps(dataclasses.asdict(self), indent=1) + "\n")

    def check(self, folder: Path) -> None:
        """RequestError for a file that is missing, or is not the one that was exported."""
        for component in self.components.values():
            for name, sha256 in component.files.items():
                if not (folder / name).is_file():
                    raise RequestError(f"{folder} is not whole: {name} is missing; copy it again, or export again")
                if digest(folder / name) != sha256:
                    raise RequestError(
                        f"{folder / name} was changed after the export: its SHA-256 is not the one in {MANIFEST}. "
                        "Export the model again, or copy the file again"
                    )


def exports_root() -> Path:
    """Where exports lie that a name alone may mean: $KOALA_EXPORTS, else exports/ in the folder in which one works."""
    return Path(os.environ.get("KOALA_EXPORTS") or "exports").absolute()


def list_exports(root: Path) -> list[Path]:
    """Every export of a folder, the newest first."""
    found = sorted(root.glob(f"[!.]*/{MANIFEST}"), key=lambda f: f.stat().st_mtime_ns, reverse=True)
    return [file.parent for file in found]


def find_export(name: str) -> Path:
    """The export that a model's name or a folder means; RequestError with the command that makes one."""
    if (Path(name) / MANIFEST).is_file():
        return Path(name)
    damaged = ""
    for folder in list_exports(exports_root()):
        try:
            found = Exported.read(folder)
        except RequestError as error:  # one that is damaged keeps nobody from the others
            damaged += f" ({error})"
            continue
        if found.model == (Path(name).resolve().name if Path(name).is_dir() else name):
            return folder
    short = Path(name).name
    raise RequestError(
        f"there is no export of {name} in {exports_root()}; make it with "
        f"python -m export --model {name} --out {exports_root() / short}{damaged}"
    )
