"""The U-Net outside torch: ONNX Runtime with bound inputs and outputs, and a TensorRT-RTX engine, against torch."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import onnxruntime
import torch

from koala.errors import UserError
from koala.gpu_report.budget import Limit, NotHere, Say
from koala.gpu_report.scale import Scale
from koala.hardware.timing import synchronize
from koala.models.from_onnx import CUDA, PROVIDERS, OrtUNet, open_session
from koala.models.library import Library
from koala.models.loaded import LoadedModel
from koala.unet.costs import LATENT_CHANNELS, LATENT_FACTOR, TOKENS

GUIDED = 2  # rows of a guided picture's batch
CALLS = 20  # timed, after three warm-up calls
_MOST_SECONDS = 10.0  # of calls of one kind


class Engine(Protocol):
    """What an engine reports: see `koala.export.engines`."""

    builder: str
    version: str
    bytes: int
    seconds: float
    milliseconds: float | None


@dataclass(kw_only=True)
class Exports:
    """How a U-Net is exported from torch, and to which folder; its file is written once for all sections."""

    folder: Path
    write: Callable[[torch.nn.Module, Path], Path]
    build: Callable[[Path, object, int], Engine]  # the folder, a spec, the side in px
    builds: Callable[[], bool]  # whether TensorRT-RTX is installed
    _file: Path | None = field(default=None, init=False)

    def file(self, model: LoadedModel, say: Say) -> Path:
        """The model's U-Net as an ONNX file."""
        if self._file is None:
            say(f"{model.card.name}: writing its U-Net as ONNX")
            model.library.residence.bring(())
            self._file = self.write(model.pipeline.unet, self.folder)
        return self._file


def inputs(model: LoadedModel, size: int) -> dict[str, torch.Tensor]:
    """Noise as the input of one guided step at this side in px, on the device, by the input names of the ONNX file."""
    source, spec = torch.Generator().manual_seed(0), model.spec

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=source).to(model.device, model.dtype)

    side = size // LATENT_FACTOR
    return {
        "sample": noise(GUIDED, LATENT_CHANNELS, side, side),
        "encoder_hidden_states": noise(GUIDED, TOKENS, spec.cross_attention_dim),
        "text_embeds": noise(GUIDED, spec.pooled_dim),
        "time_ids": torch.tensor([[size, size, 0, 0, size, size]]).repeat(GUIDED, 1).to(model.device, model.dtype),
    }


def caller(unet: torch.nn.Module, given: dict[str, torch.Tensor]) -> Callable[[], torch.Tensor]:
    """One call of a U-Net, torch's or ONNX Runtime's, at timestep 500."""
    added = {name: given[name] for name in ("text_embeds", "time_ids")}
    timestep = torch.tensor(500.0, device=given["sample"].device)

    @torch.inference_mode()
    def call() -> torch.Tensor:
        return unet(given["sample"], timestep, given["encoder_hidden_states"], added_cond_kwargs=added).sample

    return call


def in_turns(calls: dict[str, Callable], device: torch.device, limit: Limit) -> dict[str, float]:
    """Median milliseconds of each, in turns; the first three calls are warm-up."""
    took: dict[str, list[float]] = {name: [] for name in calls}
    began = time.perf_counter()
    for _ in range(CALLS + 3):
        for name, call in calls.items():
            synchronize(device)
            start = time.perf_counter()
            call()
            synchronize(device)
            took[name].append(1000 * (time.perf_counter() - start))
        enough = len(next(iter(took.values()))) > 3
        if enough and (time.perf_counter() - began > _MOST_SECONDS * len(calls) or not limit.allows(0)):
            break
    return {name: statistics.median(own[3:]) for name, own in took.items()}


def onnx_runtime(scale: Scale, library: Library, exports: Exports, results: dict, limit: Limit, say: Say) -> None:
    """A guided U-Net call at each size, on ONNX Runtime and on torch in turns, with the same tensors on the device."""
    provider = PROVIDERS[library.device.type]
    results |= {"model": scale.exported, "provider": provider, "version": onnxruntime.__version__, "rows": []}
    results["not_measured"] = []
    if provider not in (providers := onnxruntime.get_available_providers()):
        raise NotHere(
            f"ONNX Runtime here has no {provider}, only {', '.join(providers)}; pip install onnxruntime-gpu[cuda,cudnn]"
            ", without onnxruntime installed next to it"
        )
    model = library.get(scale.exported)
    file = exports.file(model, say)
    try:
        options = {"device_id": str(library.device.index or 0)} if provider == CUDA else {}
        session = open_session(file, provider, options)
    except UserError as error:  # it is listed but cannot start: CUDA or cuDNN is missing
        raise NotHere(str(error).replace(str(file), file.name)) from error
    own = OrtUNet(session, model.pipeline.unet.config, library.device)
    library.residence.bring([model.pipeline.unet])
    for size in scale.sizes:
        if not limit.allows(0):
            results["not_measured"].append({"size": size, "reason": "no time was left"})
            continue
        say(f"{scale.exported}, {size} px, ONNX Runtime and torch")
        given = inputs(model, size)
        calls = {"torch": caller(model.pipeline.unet, given), "onnxruntime": caller(own, given)}
        ms = in_turns(calls, library.device, limit)
        first, second = (call().float() for call in calls.values())
        row = {"size": size, "batch": GUIDED, "torch_ms": ms["torch"], "onnxruntime_ms": ms["onnxruntime"]}
        row["faster"] = ms["torch"] / ms["onnxruntime"]
        row["relative_error"] = float((first - second).norm() / first.norm())
        results["rows"].append(row)


def tensorrt_rtx(scale: Scale, library: Library, exports: Exports, results: dict, limit: Limit, say: Say) -> None:
    """An engine for the largest size, and a guided call of it and of torch; the card's own clock times the engine."""
    if not exports.builds():
        raise NotHere("TensorRT-RTX is not installed; pip install tensorrt-rtx")
    model, size = library.get(scale.exported), max(scale.sizes)
    exports.file(model, say)
    library.residence.bring(())
    say(f"{scale.exported}, {size} px: building an engine")
    engine = exports.build(exports.folder, model.spec, size)
    results |= {"model": scale.exported, "size": size, "batch": GUIDED, "version": engine.version}
    results |= {"build_seconds": engine.seconds, "engine_bytes": engine.bytes, "engine_ms": engine.milliseconds}
    if engine.milliseconds is None:
        raise NotHere("the engine was built, but this device cannot run it: it needs an RTX card, Turing or later")
    library.residence.bring([model.pipeline.unet])
    call = caller(model.pipeline.unet, inputs(model, size))
    results["torch_ms"] = in_turns({"torch": call}, library.device, limit)["torch"]
    results["faster"] = results["torch_ms"] / engine.milliseconds
