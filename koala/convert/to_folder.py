"""A single file -> a folder in diffusers' layout, which plain diffusers loads."""

import json
from dataclasses import dataclass
from pathlib import Path

from koala.errors import UserError
from koala.files.outputs import new_folder
from koala.models.checkpoints import open_located
from koala.models.layout import DRAWING
from koala.models.locate import locate
from koala.models.pipeline_folder import folder_bytes, network_like, write_folder
from koala.models.registry import drawing_of, find
from koala.words import megabytes


@dataclass(frozen=True, kw_only=True)
class FolderReport:
    """What a folder was made of."""

    model: str
    title: str
    out: str
    unet: str  # its spec
    unet_depths: str
    parameters: int  # of the U-Net
    bytes: int
    lent: tuple[str, ...]  # components that the file lacks, taken from another model
    settings_from: str  # the model that gave tokenizers and what the file does not say

    def lines(self) -> list[str]:
        """As text, for a terminal."""
        return [
            f"{self.out} is a pipeline for diffusers: {self.title}, {self.unet} with {self.parameters:,} parameters, "
            f"{megabytes(self.bytes)}",
            f"tokenizers and what the file does not say are those of {self.settings_from}",
            *(
                [f"{' and '.join(self.lent)} are those of {self.settings_from}, as the file has none"]
                if self.lent
                else []
            ),
        ]


def unpack(file: Path, out: Path, *, teacher: str | None = None) -> FolderReport:
    """Write a single file as a folder; UserError before anything is written.

    `teacher` is the model whose tokenizers, and whatever the file lacks, the folder takes; by default it is looked for.
    """
    card = find(str(file))
    if not card.single_file:
        raise UserError(f"{file} is not one file; a model's folder becomes one by --out FILE.safetensors")
    location = locate(card, teacher)
    original = open_located(card.name, location)
    network = network_like(original.spec, original.config)
    size = folder_bytes(original, original.tensors)
    with new_folder(out, size) as folder:
        write_folder(folder, original, network, original.tensors)
        (folder / DRAWING).write_text(json.dumps(drawing_of(card), indent=1) + "\n")
    return FolderReport(
        model=file.name,
        title=card.title,
        out=str(out),
        unet=original.spec.name,
        unet_depths=original.spec.notation,
        parameters=sum(tensor.parameters for tensor in original.tensors.values()),
        bytes=size,
        lent=tuple(location.lent),
        settings_from=location.giver,
    )
