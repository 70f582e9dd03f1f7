"""The same graph in fp32: every fp16 weight and type widened, so that only the arithmetic is left to differ."""

from pathlib import Path

import numpy
import onnx_ir as ir

HALF, FULL = ir.DataType.FLOAT16, ir.DataType.FLOAT


def widen(file: Path, out: Path) -> Path:
    """Write the fp32 twin of an ONNX file as `out`; it computes with the very same weights."""
    model = ir.load(file)
    for value in model.graph.initializers.values():
        if value.const_value.dtype == HALF:
            value.const_value = _wide(value.const_value)
            value.type = ir.TensorType(FULL)
    for value in (*model.graph.inputs, *model.graph.outputs):
        if value.dtype == HALF:
            value.type = ir.TensorType(FULL)
    for node in model.graph:
        for name, attribute in node.attributes.items():
            if name == "to" and attribute.as_int() == HALF:
                node.attributes[name] = ir.AttrInt64(name, int(FULL))
            elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype == HALF:
                node.attributes[name] = ir.AttrTensor(name, _wide(attribute.as_tensor()))
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape, value.type = None, None
    ir.save(model, out, external_data=f"{out.name}_data", size_threshold_bytes=1024)
    return out


def _wide(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    def values() -> ir.Tensor:
        return ir.Tensor(tensor.numpy().astype(numpy.float32), dtype=FULL)

    return ir.LazyTensor(values, dtype=FULL, shape=ir.Shape(tensor.shape), name=tensor.name)
