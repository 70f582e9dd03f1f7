"""How much memory the tensors of a graph take at one size of its inputs, from the file's shapes alone."""

import math
from collections.abc import Mapping
from pathlib import Path

import onnx

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
