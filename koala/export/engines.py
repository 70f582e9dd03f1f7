"""Engines built from an export's U-Net, and timed. TensorRT and TensorRT-RTX have one Python interface."""

import importlib
import importlib.util
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import torch

from koala.errors import UserError
from koala.files.hashing import digest
from koala.files.outputs import check_space, new_file
from koala.hardware.cuda import cards
from koala.words import megabytes

TENSORRT_PLAN = "unet/model.plan"
KINDS = ("min", "opt", "max")

Profile = Mapping[str, Mapping[str, tuple[int, ...]]]  # input -> {"min", "opt", "max"} -> shape


@dataclass(frozen=True, kw_only=True)
class Builder:
    """A package that builds engines. TensorRT itself searches for the fastest kernels on the GPU that will run them."""

    title: str
    module: str
    package: str
    needs_gpu: bool
    engine: str  # the file it makes, within the export

    @property
    def ready(self) -> bool:
        """Whether it is installed, and has the GPU that it needs."""
        installed = importlib.util.find_spec(self.module) is not None
        return installed and (not self.needs_gpu or cards().available())


BUILDERS = (
    Builder(
        title="TensorRT-RTX",
        module="tensorrt_rtx",
        package="tensorrt-rtx",
        needs_gpu=False,
        engine="unet/model.rtx.engine",
    ),
    Builder(title="TensorRT", module="tensorrt", package="tensorrt", needs_gpu=True, engine=TENSORRT_PLAN),
)


@dataclass(frozen=True, kw_only=True)
class Engine:
    """A built engine, and the time of one call with the usual shape on this machine's GPU."""

    builder: str
    version: str
    file: str
    bytes: int
    sha256: str
    layers: int  # of the network that the parser made
    seconds: float
    device: str | None  # the GPU; None where there is none
    milliseconds: float | None  # None where there is no GPU, or not one that can run the engine

    def line(self) -> str:
        """The engine in words."""
        if self.milliseconds is None:
            timed = f"; {self.device} cannot run it" if self.device else ""
        else:
            timed = f", {self.milliseconds:.2f} ms per call of the usual shape on {self.device}"
        return (
            f"{self.builder} {self.version}: {self.file}, {megabytes(self.bytes)} out of {self.layers:,} "
            f"layers in {self.seconds:.0f} s{timed}"
        )


def ready_builders() -> list[Builder]:
    """The builders that work on this machine; UserError with what to install if there are none."""
    if ready := [builder for builder in BUILDERS if builder.ready]:
        return ready
    raise UserError(
        "nothing here can build an engine. TensorRT-RTX builds without a GPU: pip install tensorrt-rtx; TensorRT "
        "builds on the GPU that will run the engine: pip install tensorrt"
    )


def build(folder: Path, onnx: str, profile: Profile, builder: Builder) -> Engine:
    """Parse and build the U-Net, and time it if there is a GPU; UserError with the parser's or builder's message."""
    check_space(folder / builder.engine, sum(file.stat().st_size for file in folder.glob(f"{onnx}*")))
    trt = importlib.import_module(builder.module)
    began, log = time.monotonic(), _log(trt)
    maker = trt.Builder(log)
    network = maker.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(folder / onnx)):
        raise UserError(f"{builder.title} cannot read {folder / onnx}: {parser.get_error(0)}")
    config, shapes = maker.create_builder_config(), maker.create_optimization_profile()
    for name, each in profile.items():
        shapes.set_shape(name, *(each[kind] for kind in KINDS))
    config.add_optimization_profile(shapes)
    engine = maker.build_serialized_network(network, config)
    if engine is None:
        raise UserError(f"{builder.title} cannot build {folder / onnx}: {log.errors[0]}")
    seconds = time.monotonic() - began
    with new_file(folder / builder.engine) as partial, open(partial, "wb") as out:
        out.write(engine)
    usual = {name: each["opt"] for name, each in profile.items()}
    return Engine(
        builder=builder.title,
        version=trt.__version__,
        file=builder.engine,
        bytes=engine.nbytes,
        sha256=digest(folder / builder.engine),
        layers=network.num_layers,
        seconds=seconds,
        device=cards().name() if cards().available() else None,
        milliseconds=latency(trt, engine, usual) if cards().available() else None,
    )


def _log(trt: ModuleType):
    """A logger that keeps errors for the message and prints nothing."""

    class Log(trt.ILogger):
        def __init__(self):
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.append(message)

    return Log()


def latency(trt: ModuleType, engine, shapes: Mapping[str, tuple[int, ...]], calls: int = 20) -> float | None:
    """Milliseconds of one call, the median after three that are not counted; None for a GPU that cannot run it."""
    runtime = trt.Runtime(_log(trt))
    loaded = runtime.deserialize_cuda_engine(engine)
    if loaded is None:
        return None
    context, stream = loaded.create_execution_context(), cards().new_stream()
    types = {trt.DataType.HALF: torch.float16, trt.DataType.FLOAT: torch.float32}
    names = [loaded.get_tensor_name(i) for i in range(loaded.num_io_tensors)]
    for name, shape in shapes.items():
        context.set_input_shape(name, shape)
    buffers = {
        name: torch.zeros(
            tuple(context.get_tensor_shape(name)), dtype=types[loaded.get_tensor_dtype(name)], device="cuda"
        )
        for name in names
    }
    for name, buffer in buffers.items():
        context.set_tensor_address(name, buffer.data_ptr())
    cards().synchronize()
    times = []
    for _ in range(3 + calls):
        start, end = (cards().new_event() for _ in range(2))
        start.record(stream)
        context.execute_async_v3(stream.cuda_stream)
        end.record(stream)
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[3:])
