"""What a file for a target must not contain, read from the file alone."""

from collections.abc import Iterator

import onnx_ir as ir

from koala.export.targets import Target

_PRODUCTS = ("MatMulInteger", "ConvInteger")


def unwanted(model: ir.Model, target: Target) -> Iterator[str]:
    """Operators that the target's files must not have, and integers that saturate on some processors."""
    if model.functions:
        yield f"functions of its own, which hide their operators: {', '.join(f.name for f in model.functions.values())}"
    kinds = {node.op_type for node in model.graph}
    if listed := [kind for kind in target.forbidden if kind in kinds]:
        yield f"operators that files for {target.name} must not have: {', '.join(listed)}"
    yield from _signed(model, target)


def _signed(model: ir.Model, target: Target) -> Iterator[str]:
    """8-bit weights that this target must not have, and integer products of what is not known to be unsigned.

    The file is looked at and not its results: whether a product with signed weights saturates depends on the processor.
    """
    tensors = [value.const_value for value in model.graph.initializers.values()]
    tensors += [
        attribute.as_tensor()
        for node in model.graph
        for attribute in node.attributes.values()
        if attribute.type == ir.AttributeType.TENSOR
    ]
    if not target.signed and (names := [tensor.name for tensor in tensors if tensor.dtype == ir.DataType.INT8]):
        yield (
            f"{len(names)} tensors of signed 8-bit integers, {names[0]} the first: products with them saturate on x86 "
            f"processors without VNNI. Export the model again: its weights will be unsigned"
        )
    for node in model.graph:
        for value in node.inputs[:2] if node.op_type in _PRODUCTS else ():
            if not _unsigned(value):
                yield f"{node.op_type} multiplies {value.name}, which is not known to be unsigned"
                return


def _unsigned(value: ir.Value) -> bool:
    if made := value.producer():
        return made.op_type == "DynamicQuantizeLinear"  # which gives uint8 by definition
    return value.const_value is not None and value.const_value.dtype == ir.DataType.UINT8
