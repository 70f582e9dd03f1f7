"""One traced part -> one ONNX file."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir
import torch

import koala
from koala.export import graph
from koala.export.wrappers import INNER, Traced

SINGLE_FILE = 2**31 - 2**20  # bytes: what protobuf reads from one file, less the graph itself
DATA_SUFFIX = "_data"  # of the one file that holds the weights of a larger model, by optimum's convention
PRODUCER = "koala"


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A part as an ONNX graph in memory; its weights are torch's own and are read when it is saved."""

    model: ir.Model
    weights: dict[str, dict]  # parameter -> shape, stored, permutation; see `graph.absorb_weights`


@dataclass(frozen=True, kw_only=True)
class Program:
    """A traced part: torch's program, and the names of its inputs and outputs."""

    program: torch.export.ExportedProgram
    traced: Traced


def trace(traced: Traced) -> Program:
    """Follow the part through its example inputs, with the named dimensions left free (torch.export)."""
    auto = torch.export.Dim.AUTO
    shapes = {name: {k: auto for k in dims} for name, dims in traced.dims.items()}
    with torch.no_grad():
        program = torch.export.export(traced.module, (), dict(traced.inputs), dynamic_shapes=shapes, strict=False)
    return Program(program=program, traced=traced)


def convert(program: Program, opset: int) -> Graph:
    """A traced part as a graph of standard operators (torch.onnx), its inputs, outputs and weights named."""
    traced = program.traced
    with torch.no_grad(), _hushed():
        exported = torch.onnx.export(
            program.program,
            opset_version=opset,
            input_names=list(traced.inputs),
            output_names=list(traced.outputs),
            optimize=False,
            verbose=False,
        )
    model = exported.model
    graph.simplify(model)
    weights = graph.absorb_weights(model, f"{INNER}.")
    graph.name_dims(model, traced.dims, traced.output_dims)
    graph.anonymise(model)
    model.producer_name, model.producer_version = PRODUCER, koala.__version__
    return Graph(model=model, weights=weights)


@contextlib.contextmanager
def _hushed() -> Iterator[None]:
    """Mute torch.onnx's warnings about torchvision, which nothing here uses, and its own use of LeafSpec."""
    loggers = [logging.getLogger(n) for n in ("torch.onnx._internal.exporter._registration", "torch.onnx")]
    before = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*LeafSpec", FutureWarning)
            yield
    finally:
        for one, level in zip(loggers, before, strict=True):
            one.setLevel(level)


def size(model: ir.Model) -> int:
    """Bytes of the weights."""
    return sum(value.const_value.nbytes for value in model.graph.initializers.values())


def save(model: ir.Model, path: Path, metadata: Mapping[str, str]) -> list[Path]:
    """Write the file, with a separate data file if it is too large for protobuf; the files written."""
    model.metadata_props.clear()
    model.metadata_props.update(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    if size(model) < SINGLE_FILE:
        ir.save(model, path)
        return [path]
    data = path.with_name(path.name + DATA_SUFFIX)
    ir.save(model, path, external_data=data.name, size_threshold_bytes=1024)
    return [path, data]
