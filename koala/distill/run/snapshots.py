"""Checkpoints of a run: student, moving average and optimizer as safetensors, everything else as JSON, each hashed.

Randomness needs no state: order, noise and captions are functions of the step (koala/distill/draws.py), so the step
is also the position in the data. Nothing is pickled.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

import torch
from safetensors import safe_open

from koala.distill.config import DistillConfig
from koala.distill.optimizers import Ema, learning
from koala.distill.run.folder import RunFolder
from koala.distill.run.intact import FILES, STATE, write_manifest
from koala.files.outputs import new_folder
from koala.files.tensorfiles import save_tensors


@dataclass(frozen=True, kw_only=True)
class Position:
    """How far a run is. `best_loss` is the lowest validation loss so far, of checkpoint `best_step`."""

    step: int  # optimizer steps done; the data's position too
    ema_steps: int
    seconds: float  # of training so far
    best_step: int | None = None
    best_loss: float | None = None
    data: str = ""  # key of the encoded data that the run learned from


def _whole(tensor: torch.Tensor) -> torch.Tensor:
    """On the CPU, gathered where it is sharded over processes. Every process must call it."""
    if hasattr(tensor, "full_tensor"):
        tensor = tensor.full_tensor()
    return tensor.detach().cpu().contiguous()


def _like(value: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """`value` on the device of `target`, cut into shards as that is."""
    if hasattr(target, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value.to(target.device), target.device_mesh, target.placements)
    return value.to(target.device)


def _sharded(student: torch.nn.Module) -> bool:
    return hasattr(next(student.parameters()), "full_tensor")


def student_tensors(student: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Weights that learn by name, whole and on the CPU."""
    own = {name for name, _ in learning(student)}
    return {name: _whole(p) for name, p in student.state_dict().items() if name in own}


def ema_tensors(ema: Ema) -> dict[str, torch.Tensor]:
    """The moving average, whole on the CPU, by parameter name."""
    return {name: _whole(w) for name, w in ema.weights.items()}


def _optimizer_state(student: torch.nn.Module, optimizers: Iterable) -> tuple[dict[str, torch.Tensor], dict]:
    """(tensors, numbers), both by "parameter|key"."""
    tensors, numbers = {}, {}
    for optimizer in optimizers:
        for name, parameter in student.named_parameters():
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    tensors[f"{name}|{key}"] = _whole(value)
                else:
                    numbers[f"{name}|{key}"] = value
    return tensors, numbers


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a checkpoint keeps of the networks: tensors by name, whole and on the CPU, and the optimizer's numbers."""

    tensors: tuple[dict[str, torch.Tensor], ...]  # student, moving average, optimizer
    numbers: dict


def contents(student: torch.nn.Module, ema: Ema | None, optimizers: Iterable, *, writes: bool) -> Contents | None:
    """Every process must call it, since a sharded student is gathered from all; None where this one never `writes`."""
    if not writes and not _sharded(student):
        return None
    weights, averaged = student_tensors(student), ema_tensors(ema) if ema else {}
    tensors, numbers = _optimizer_state(student, optimizers)
    return Contents(tensors=(weights, averaged, tensors), numbers=numbers)


def save(run: RunFolder, config: DistillConfig, position: Position, kept: Contents, scaler: Mapping | None) -> None:
    """Write checkpoints/step-N completely or not at all; an existing one is kept.

    OSError where the disk is full: the earlier checkpoints are untouched.
    """
    target = run.checkpoint(position.step)
    if target.exists():
        return
    size = sum(t.numel() * t.element_size() for d in kept.tensors for t in d.values())
    state = asdict(position) | {"optimizer": kept.numbers, "scaler": dict(scaler) if scaler else None}
    with new_folder(target, size) as folder:
        for name, values in zip(FILES, kept.tensors, strict=False):
            save_tensors(folder / name, values)
        (folder / STATE).write_text(json.dumps(state, indent=1) + "\n")
        write_manifest(folder, config)


def position(run: RunFolder, step: int) -> tuple[Position, dict | None]:
    """The position of checkpoint `step`, and its gradient scaler's state."""
    state = json.loads((run.checkpoint(step) / STATE).read_text())
    state.pop("optimizer")
    scaler = state.pop("scaler")
    return Position(**state), scaler


@torch.no_grad()
def load_weights(run: RunFolder, step: int, student: torch.nn.Module) -> None:
    """Load the weights into a student that is not yet wrapped."""
    with safe_open(run.checkpoint(step) / FILES[0], "pt") as file:
        for name, parameter in learning(student):
            parameter.copy_(file.get_tensor(name))


@torch.no_grad()
def load_rest(run: RunFolder, step: int, student: torch.nn.Module, ema: Ema | None, optimizers: Iterable) -> None:
    """Load moving average and optimizer state for a student that may already be sharded."""
    folder = run.checkpoint(step)
    if ema:
        with safe_open(folder / FILES[1], "pt") as file:
            for name, weight in ema.weights.items():
                weight.copy_(_like(file.get_tensor(name), weight))
    numbers = json.loads((folder / STATE).read_text())["optimizer"]
    with safe_open(folder / FILES[2], "pt") as file:
        tensors = {}
        for entry in file.keys():  # noqa: SIM118  (not a dict)
            name, _, key = entry.partition("|")
            tensors.setdefault(name, []).append((key, entry))
        for optimizer in optimizers:
            owned = {id(p) for group in optimizer.param_groups for p in group["params"]}
            for name, parameter in student.named_parameters():
                if id(parameter) not in owned:
                    continue
                state = optimizer.state[parameter]
                for key, entry in tensors.get(name, ()):
                    value = file.get_tensor(entry)
                    state[key] = (
                        _like(value, parameter) if value.shape == parameter.shape else value.to(parameter.device)
                    )
                state |= {e.partition("|")[2]: v for e, v in numbers.items() if e.partition("|")[0] == name}


def tidy(run: RunFolder, keep_last: int, best_step: int | None) -> None:
    """Remove all checkpoints but the last ones and the best."""
    for step in run.checkpoints()[:-keep_last]:
        if step != best_step:
            run.remove_checkpoint(step)
