"""A file's metadata: the source of its weights, what made it, and how to run it."""

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import onnx

import koala
from koala.files.hashing import digest
from koala.models.cards import ModelCard
from koala.models.export_manifest import Component, Exported

PREFIX = "koala."  # of our keys in metadata_props
_TOOLS = ("torch", "diffusers", "transformers", "onnx", "onnxscript")


def versions() -> dict[str, str]:
    """Versions of the packages that determine a file's bytes."""
    return {"koala": koala.__version__, **{name: version(name).partition("+")[0] for name in _TOOLS}}


def defaults(card: ModelCard) -> dict[str, object]:
    """The settings that the model's authors recommend."""
    return {name: getattr(card, name) for name in ("scheduler", "steps", "guidance", "width", "height")}


def metadata(exported: Exported, component: str, dtype: str) -> dict[str, str]:
    """metadata_props of a component's ONNX file: all of the manifest but the hashes of files, which would be their own.

    `dtype` is of this file's weights.
    """
    values = {
        "model": exported.model,
        "component": component,
        "dtype": dtype,
        "revision": exported.revision,
        "licence": exported.licence,
        "spec": exported.spec,
        "target": exported.target,
        "source_sha256": exported.source,
        "defaults": exported.defaults,
        "profile": exported.profile,
        "versions": exported.versions,
        "islands": exported.islands or None,
        "lora": exported.lora,
    }
    return {f"{PREFIX}{k}": v if isinstance(v, str) else json.dumps(v) for k, v in values.items() if v is not None}


def add_metadata(path: Path, values: Mapping[str, str]) -> None:
    """Add metadata to a written file without reading its weights: protobuf appends repeated fields."""
    more = onnx.ModelProto()
    onnx.helper.set_model_props(more, dict(values))
    with open(path, "ab") as file:
        file.write(more.SerializeToString())


def component(folder: Path, files: list[Path], dtype: str, parameters: int) -> Component:
    """A written graph, as its file declares it."""
    model = onnx.load(files[0], load_external_data=False)
    return Component(
        files={file.relative_to(folder).as_posix(): digest(file) for file in files},
        inputs={value.name: _declared(value) for value in model.graph.input},
        outputs={value.name: _declared(value) for value in model.graph.output},
        dtype=dtype,
        opset=next(o.version for o in model.opset_import if not o.domain),
        parameters=parameters,
    )


def _declared(value: onnx.ValueInfoProto) -> tuple[str, list]:
    kind = value.type.tensor_type
    name = onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).name
    return name, [d.dim_param or d.dim_value for d in kind.shape.dim]
