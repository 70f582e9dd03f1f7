"""Linear layers in 8 bits: weights alone, or with activations quantised at run time (for CPUs)."""

import re
from collections.abc import Iterator

import numpy
import onnx_ir as ir

DYNAMIC, WEIGHT_ONLY = "dynamic-int8", "weight-only-int8"
_LEVELS = 127  # symmetric: -127 .. 127, so that zero is zero
_ZERO = 128  # of unsigned weights: the same levels, stored as 1 .. 255


_BLOCK = re.compile(r"((?:down|up)_blocks\.\d+|mid_block)\.attentions\.\d+\.")


def _linear(model: ir.Model) -> Iterator[tuple[ir.Node, ir.Value]]:
    """Every product with a weight matrix that is stored in 8 bits; products of two activations are left.

    Left in full precision, too, are the attention blocks at the highest resolution (DW-2 and UP-2 of SDXL's family):
    they hold a tenth of these weights and make nine tenths of the error in the last steps of a run, where the latents
    are nearly clean. In a U-Net whose attention has one width there is no such level, and every matrix is stored so.
    """
    products = [
        (node, weight)
        for node in model.graph
        if node.op_type == "MatMul" and (weight := node.inputs[1]).is_initializer() and len(weight.shape) == 2
    ]
    outermost = _outermost([weight for _, weight in products])
    for node, weight in products:
        block = _BLOCK.match(weight.name)
        if not (block and block[1] in outermost):
            yield node, weight


def _outermost(weights: list[ir.Value]) -> set[str]:
    """The blocks whose attention has the fewest channels, so the highest resolution; none where all have as many."""
    channels: dict[str, int] = {}
    for weight in weights:
        if (block := _BLOCK.match(weight.name)) and weight.name.endswith(".proj_in.weight"):
            channels[block[1]] = weight.shape[1]
    fewest = {block for block, count in channels.items() if count == min(channels.values())}
    return fewest if len(fewest) < len(channels) else set()


def _rounded(weight: ir.TensorProtocol) -> tuple[numpy.ndarray, numpy.ndarray]:
    """A matrix (inputs, outputs) as int8 and one fp32 scale per output."""
    values = weight.numpy().astype(numpy.float32)
    scale = numpy.maximum(abs(values).max(axis=0), numpy.finfo(numpy.float32).tiny) / _LEVELS
    return numpy.rint(values / scale).clip(-_LEVELS, _LEVELS).astype(numpy.int8), scale


def _initializer(model: ir.Model, name: str, values: numpy.ndarray) -> ir.Value:
    tensor = ir.Tensor(values, name=name)
    value = ir.Value(name=name, const_value=tensor, type=ir.TensorType(tensor.dtype), shape=ir.Shape(values.shape))
    model.graph.initializers[name] = value
    return value


def _insert(
    model: ir.Model, before: ir.Node, kind: str, inputs: list, attributes: dict | None = None, outputs: int = 1
):
    node = ir.node(kind, inputs, attributes, num_outputs=outputs)
    for index, value in enumerate(node.outputs):
        value.name = f"{before.name or before.outputs[0].name}.{kind}.{index}"
    model.graph.insert_before(before, node)
    return node.outputs if outputs > 1 else node.outputs[0]


def weight_only(model: ir.Model) -> None:
    """Store int8 weights and dequantise them at run time; standard operators (DequantizeLinear per channel).

    They may be signed, for nothing multiplies them as integers; TensorRT reads no unsigned ones.
    """
    for node, weight in _linear(model):
        values, scale = _rounded(weight.const_value)
        stored = _initializer(model, f"{weight.name}.int8", values)
        scales = _initializer(model, f"{weight.name}.scale", scale.astype(weight.const_value.dtype.numpy()))
        node.replace_input_with(1, _insert(model, node, "DequantizeLinear", [stored, scales], {"axis": 1}))
        if not weight.uses():
            del model.graph.initializers[weight.name]


def dynamic(model: ir.Model) -> None:
    """Multiply in integers: activations get a scale per tensor in every run (DynamicQuantizeLinear, MatMulInteger).

    Weights are unsigned: x86 processors without VNNI add pairs of unsigned by signed products in 16 bits, and saturate.
    Convolutions stay in fp32: ONNX Runtime has no fast integer kernel for them.
    """
    zero_point = _initializer(model, "weights.zero_point", numpy.array(_ZERO, numpy.uint8))
    quantised: dict[ir.Value, tuple] = {}
    for node, weight in _linear(model):
        values, scale = _rounded(weight.const_value)
        stored = _initializer(model, f"{weight.name}.uint8", (values.astype(numpy.int16) + _ZERO).astype(numpy.uint8))
        scales = _initializer(model, f"{weight.name}.scale", scale)
        activation = node.inputs[0]
        if activation not in quantised:
            quantised[activation] = _insert(model, node, "DynamicQuantizeLinear", [activation], outputs=3)
        integers, factor, zero = quantised[activation]
        product = _insert(model, node, "MatMulInteger", [integers, stored, zero, zero_point])
        product = _insert(model, node, "Cast", [product], {"to": ir.DataType.FLOAT})
        both = _insert(model, node, "Mul", [factor, scales])
        result = _insert(model, node, "Mul", [product, both])
        result.name = f"{node.outputs[0].name}.scaled"
        for user, position in tuple(node.outputs[0].uses()):
            user.replace_input_with(position, result)
        model.graph.remove(node, safe=True)
        if not weight.uses():
            del model.graph.initializers[weight.name]


QUANTISERS = {DYNAMIC: dynamic, WEIGHT_ONLY: weight_only}
