"""An export for CPUs as it was before weights were unsigned, and as it is: U-Nets alone, of a folder in fp16."""

import dataclasses
import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy
import onnx
import onnx_ir as ir

from koala.export import quantise
from koala.export.gates.numbers import widen
from koala.files.hashing import sha256
from koala.models.export_manifest import UNET, Exported


def unsigned_export(fp16: Path, out: Path) -> Path:
    """The U-Net of a folder for cpu-int8, without a new trace."""
    shutil.copytree(fp16, out)
    model = ir.load(widen(fp16 / UNET, out / "twin.onnx"))
    output = onnx.load(fp16 / UNET, load_external_data=False).metadata_props
    quantise.dynamic(model)
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape, value.type = None, None
    source = json.dumps(_of_the_unet(Exported.read(fp16).source))
    changed = {"koala.dtype": quantise.DYNAMIC, "koala.source_sha256": source}
    model.metadata_props.update({p.key: p.value for p in output} | changed)
    ir.external_data.load_to_model(model)  # the twin's, which goes
    ir.save(model, out / UNET)
    for file in out.glob("twin.onnx*"):
        file.unlink()
    _settle(out)
    return out


def signed_export(fp16: Path, out: Path) -> Path:
    """The same with weights around zero, and no zero point."""
    unsigned_export(fp16, out)
    model = onnx.load(out / UNET)
    weights = {node.input[1] for node in model.graph.node if node.op_type == "MatMulInteger"}
    for tensor in model.graph.initializer:
        if tensor.name in weights:
            values = (onnx.numpy_helper.to_array(tensor).astype(numpy.int16) - 128).astype(numpy.int8)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    for node in model.graph.node:
        if node.op_type == "MatMulInteger":
            del node.input[3]
    del model.graph.value_info[:]  # which has the unsigned type
    onnx.save(model, out / UNET)
    _settle(out)
    return out


def _of_the_unet(source: Mapping[str, str]) -> dict[str, str]:
    return {name: sha256 for name, sha256 in source.items() if name.startswith("unet/")}


def _settle(folder: Path) -> None:
    """Let the manifest say what the folder now is."""
    exported = Exported.read(folder)
    inputs = {name: ("float32", dims) for name, (_, dims) in exported.components["unet"].inputs.items()}
    unet = dataclasses.replace(
        exported.components["unet"], files={UNET: sha256(folder / UNET)}, dtype=quantise.DYNAMIC, inputs=inputs
    )
    dataclasses.replace(
        exported,
        target="cpu-int8",
        dtype=quantise.DYNAMIC,
        stored_dtype="float32",
        components={"unet": unet},
        source=_of_the_unet(exported.source),
    ).write(folder)
