"""The result of a run that trains a LoRA: its file, and the student's U-Net with it merged in.

The student's folder is a whole model at any size, as after every other run: the app, `compare`, `eval` and the export
load it without knowing of a LoRA. At full size that takes 5 GB of disk for the U-Net, once per run, where a checkpoint
holds the factors alone.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from koala.distill.config import DistillConfig
from koala.distill.run.folder import RunFolder
from koala.files.outputs import new_file
from koala.files.tensorfiles import Derived, load, write_tensors
from koala.lora.training import as_file, by_layer, merged
from koala.models.checkpoints import open_unet
from koala.models.registry import drawing_of


def write_lora(run: RunFolder, config: DistillConfig, factors: Mapping[str, torch.Tensor]) -> None:
    """Replace the run's LoRA, in fp32. `factors` are the trained weights by parameter name, on the CPU."""
    card = run.student_card()
    tensors, metadata = as_file(factors, config.lora_alpha, card.spec, drawing_of(card))
    held = {name: _Held(tensor=tensor.float()) for name, tensor in tensors.items()}
    with new_file(run.lora) as partial:
        write_tensors(partial, held, metadata)  # safetensors' own writer puts the metadata in an order of chance


@dataclass(frozen=True, kw_only=True)
class _Held:
    """A tensor in memory, in fp32 (koala.files.tensorfiles.Streamed)."""

    tensor: torch.Tensor

    dtype = "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def size(self) -> int:
        return 4 * self.parameters

    @property
    def parameters(self) -> int:
        return self.tensor.numel()

    def blocks(self) -> Iterator[bytes]:
        """All its bytes at once."""
        yield self.tensor.contiguous().numpy().tobytes()


@dataclass(frozen=True, kw_only=True)
class _Merged(Derived):
    """A layer's weight with the LoRA in it, computed when it is written."""

    parts: Mapping[str, torch.Tensor]

    def blocks(self) -> Iterator[bytes]:
        """All its bytes at once."""
        yield bytes(merged(load(self.stored), self.parts).contiguous().view(torch.uint8).numpy())


def merge(run: RunFolder, config: DistillConfig, factors: Mapping[str, torch.Tensor], target: Path) -> None:
    """Replace the weights at `target` by the teacher's with the LoRA in them, one tensor at a time."""
    teacher = open_unet(config.teacher)
    layers = {f"{module}.weight": parts for module, parts in by_layer(factors, config.lora_alpha).items()}
    tensors = {
        name: _Merged(stored=stored, parts=layers[name]) if name in layers else stored
        for name, stored in teacher.tensors.items()
    }
    with new_file(target) as partial:
        write_tensors(partial, tensors | dict(teacher.markers))
