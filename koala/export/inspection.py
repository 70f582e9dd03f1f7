"""What an exported folder contains, read from its files alone: no model and no run is needed."""

import argparse
import dataclasses
import json
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import onnx
import onnx_ir as ir

from koala.errors import UserError
from koala.export.gates.structure import unwanted
from koala.export.manifest import PREFIX
from koala.export.targets import target_of
from koala.models.export_manifest import AGAIN, Component, Exported
from koala.unet.costs import LATENT_FACTOR
from koala.words import size

HELP = "describe an export: operators, sizes, inputs, outputs, metadata, and the memory that it needs"
SHOWN = 6  # operators of a component in the text, the most frequent


@dataclass(frozen=True, kw_only=True)
class Part:
    """One ONNX graph. Dimensions are numbers or names; `operators` are by frequency, `metadata` without our prefix."""

    files: dict[str, int]  # path in the folder -> bytes
    dtype: str
    opset: int
    parameters: int
    nodes: int
    operators: dict[str, int]
    inputs: dict[str, tuple]
    outputs: dict[str, tuple]
    metadata: dict[str, object]
    problems: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that one size takes: all weights as stored, and the most tensors at once in any part; None if unknown."""

    width: int  # px
    height: int
    batch: int  # samples of a U-Net call: a guided picture is two
    weights_bytes: int
    tensors_bytes: int | None
    busiest: str | None

    @property
    def bytes(self) -> int | None:
        """Both together."""
        return None if self.tensors_bytes is None else self.weights_bytes + self.tensors_bytes


@dataclass(frozen=True, kw_only=True)
class Inspection:
    """An exported folder; `problems` lists what its files must not contain for their target."""

    model: str
    title: str
    licence: str
    target: str
    dtype: str
    bytes: int  # of all files in the folder
    components: dict[str, Part]
    memory: tuple[Memory, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        """Of every component."""
        return tuple(f"{name}: {problem}" for name, part in self.components.items() for problem in part.problems)

    def to_dict(self) -> dict:
        """Every field, for `--json`."""
        memory = [dataclasses.asdict(one) | {"bytes": one.bytes} for one in self.memory]
        return dataclasses.asdict(self) | {"memory": memory, "problems": self.problems}

    def lines(self) -> list[str]:
        """As text."""
        lines = [f"{self.title} for {self.target}, {self.dtype}, {self.licence}: {size(self.bytes)}"]
        for name, part in self.components.items():
            sizes = ", ".join(f"{file} {size(count)}" for file, count in part.files.items())
            lines.append(f"{name}: {sizes}; {part.dtype}, opset {part.opset}, {part.parameters:,} parameters")
            common = list(part.operators.items())[:SHOWN]
            rest = len(part.operators) - len(common)
            counts = ", ".join(f"{count} {kind}" for kind, count in common)
            lines.append(f"  {part.nodes:,} nodes: {counts}" + (f" and {rest} other operators" if rest > 0 else ""))
            for way, values in (("in ", part.inputs), ("out", part.outputs)):
                lines += [f"  {way}  {value}  {kind} [{', '.join(map(str, d))}]" for value, (kind, d) in values.items()]
        lines += [_memory_line(one) for one in self.memory]
        source = self.components["unet"].metadata.get("source_sha256", {})
        lines += [f"made of {file}, SHA-256 {sha256}" for file, sha256 in source.items()]
        return lines + [f"PROBLEM  {problem}" for problem in self.problems]


def _memory_line(one: Memory) -> str:
    where = f"{one.width}x{one.height} px, batch {one.batch}"
    if one.tensors_bytes is None:
        return f"{where}: {size(one.weights_bytes)} of weights; the tensors' size is unknown from the file"
    return (
        f"{where}: about {size(one.bytes)} of memory, {size(one.weights_bytes)} of weights and "
        f"{size(one.tensors_bytes)} of tensors in the {one.busiest}"
    )


def inspect(folder: Path) -> Inspection:
    """UserError if the folder is not an export, or a file of it is missing, changed or damaged."""
    exported = Exported.read(folder)
    exported.check(folder)
    return Inspection(
        model=exported.model,
        title=exported.title,
        licence=exported.licence,
        target=exported.target,
        dtype=exported.dtype,
        bytes=sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()),
        components={name: _part(folder, name, exported, one) for name, one in exported.components.items()},
        memory=tuple(_memory(folder, exported)),
    )


def _part(folder: Path, name: str, exported: Exported, component: Component) -> Part:
    file = folder / name / "model.onnx"
    try:
        onnx.checker.check_model(str(file))  # by path: also above 2 GiB
    except onnx.checker.ValidationError as error:
        raise UserError(
            f"{file} is not a complete ONNX file ({str(error).strip().splitlines()[0]}); {AGAIN}"
        ) from error
    model = ir.load(file)
    operators = Counter(node.op_type for node in model.graph)
    target, _ = target_of(exported.target, None)
    return Part(
        files={name: (folder / name).stat().st_size for name in component.files},
        dtype=component.dtype,
        opset=component.opset,
        parameters=component.parameters,
        nodes=operators.total(),
        operators=dict(sorted(operators.items(), key=lambda item: (-item[1], item[0]))),
        inputs=dict(component.inputs),
        outputs=dict(component.outputs),
        metadata={key.removeprefix(PREFIX): _value(text) for key, text in sorted(model.metadata_props.items())},
        problems=tuple(unwanted(model, target)),
    )


def _value(text: str) -> object:
    """A metadata text's value: parsed JSON, or the text itself."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _memory(folder: Path, exported: Exported) -> list[Memory]:
    """At the smallest, usual and largest size of the export's profile; every part stays in memory throughout."""
    weights = sum((folder / file).stat().st_size for one in exported.components.values() for file in one.files)
    guided = exported.profile["sample"]["opt"][0]
    tokens = exported.profile["encoder_hidden_states"]["opt"][1]
    rows = []
    for kind in ("min", "opt", "max"):
        _, _, height, width = exported.profile["sample"][kind]
        latents = {"batch": guided, "sequence": tokens, "height": height, "width": width}
        pixels = latents | {"height": height * LATENT_FACTOR, "width": width * LATENT_FACTOR}
        each = {
            name: live_bytes(folder / name / "model.onnx", sizes | {"batch": guided if name == "unet" else 1})
            for name in exported.components
            for sizes in (pixels if name == "vae_encoder" else latents,)
        }
        known = None not in each.values()
        busiest = max(each, key=each.get) if known else None
        rows.append(
            Memory(
                width=width * LATENT_FACTOR,
                height=height * LATENT_FACTOR,
                batch=guided,
                weights_bytes=weights,
                tensors_bytes=each[busiest] if known else None,
                busiest=busiest,
            )
        )
    return rows


def add(parser: argparse.ArgumentParser) -> None:
    """The command's one argument."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="an export")


def run(args: argparse.Namespace) -> int:
    """Prints what the folder holds, or JSON; exit status 0, or 1 if a file has what its target forbids."""
    inspection = inspect(args.folder)
    print(json.dumps(inspection.to_dict(), indent=1) if args.json else "\n".join(inspection.lines()))
    return 1 if inspection.problems else 0


# Operators of opset 23 that ONNX Runtime's shape inference does not know: their first output is like their first input.
_LIKE_INPUT = ("Attention", "GroupNormalization")


def live_bytes(file: Path, sizes: Mapping[str, int]) -> int | None:
    """The most bytes of tensors that exist at once, nodes run in the file's order; None if a shape is unknown.

    `sizes` gives every named dimension of the inputs. Weights are not counted. A runtime that fuses needs less, and one
    that computes fp16 in fp32, as ONNX Runtime does on a CPU, up to twice as much.
    """
    model = onnx.load(file, load_external_data=False)
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_value = sizes[dim.dim_param]
    nbytes = _shapes(model)
    nodes = model.graph.node
    held = [{name for name in (*node.input, *node.output) if name in nbytes} for node in nodes]
    if any(name and name not in nbytes for node in nodes for name in node.output):
        return None
    last = {name: position for position, names in enumerate(held) for name in names}
    last |= {output.name: len(nodes) for output in model.graph.output}
    alive, most = sum(nbytes[value.name] for value in model.graph.input), 0
    for position, (node, names) in enumerate(zip(nodes, held, strict=True)):
        alive += sum(nbytes[name] for name in node.output if name)
        most = max(most, alive)
        alive -= sum(nbytes[name] for name in names if last[name] == position)
    return most


def _shapes(model: onnx.ModelProto) -> dict[str, int]:
    """Bytes of the inputs and of every result whose shape is known; weights are left out."""
    from onnxruntime.tools.symbolic_shape_infer import SymbolicShapeInference  # sympy, a second of imports

    stand_in = onnx.ModelProto()
    stand_in.CopyFrom(model)
    for node in stand_in.graph.node:
        if node.op_type in _LIKE_INPUT:
            same = onnx.helper.make_node("Identity", node.input[:1], node.output[:1], name=node.name)
            node.CopyFrom(same)
    graph = SymbolicShapeInference.infer_shapes(stand_in, auto_merge=True).graph
    sizes = {}
    for value in (*graph.input, *graph.value_info, *graph.output):
        kind = value.type.tensor_type
        if all(dim.HasField("dim_value") for dim in kind.shape.dim):
            count = math.prod(dim.dim_value for dim in kind.shape.dim)
            sizes[value.name] = count * onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type).itemsize
    return sizes
