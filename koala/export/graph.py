"""Graph passes between torch's exporter and the file: fewer nodes, torch's weight names, no traces of this machine."""

import numpy
import onnx_ir as ir
import onnx_ir.passes.common as common
from onnxscript.optimizer import fold_constants

FOLDED = 1 << 20  # elements: a larger constant stays an operator, so that no table is baked into the file
_MOVES = ("Transpose", "Unsqueeze", "Squeeze", "Reshape", "Identity")


def simplify(model: ir.Model) -> None:
    """Fold constants, merge duplicates, drop unused nodes. Weights are left to `absorb_weights`.

    onnxscript's own optimizer also tries every rewriting rule on every node: ten times as long for 4 % fewer nodes.
    """
    weights = set(model.graph.initializers)

    def fold(node: ir.Node) -> bool | None:
        return False if any(value is not None and value.name in weights for value in node.inputs) else None

    common.InlinePass()(model)
    fold_constants(model, onnx_shape_inference=True, output_size_limit=FOLDED, should_fold=fold)
    common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    _drop_neutral(model)
    ir.passes.Sequential(
        common.RemoveUnusedNodesPass(),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.OutputFixPass(),
        common.NameFixPass(),
    )(model)


def _drop_neutral(model: ir.Model) -> None:
    """x / 1, x * 1 and a transposition that moves no axis are x.

    The U-Net divides by scale factors that are 1. ONNX Runtime 1.20 to 1.25 fuses every transposition with the Gemm
    after it as if it swapped the axes, and then cannot run the projection of a text encoder.
    """
    for node in list(model.graph):
        if _neutral(node) and not node.outputs[0].is_graph_output():
            _replace(node.outputs[0], node.inputs[0])
            model.graph.remove(node, safe=True)


def _neutral(node: ir.Node) -> bool:
    """Whether its result is its first input."""
    if node.op_type == "Transpose" and "perm" in node.attributes:
        axes = node.attributes["perm"].as_ints()
        return list(axes) == sorted(axes)
    if node.op_type not in ("Div", "Mul") or node.inputs[1].const_value is None:
        return False
    factor = node.inputs[1].const_value
    return factor.size == 1 and float(factor.numpy().reshape(())) == 1


def _replace(old: ir.Value, new: ir.Value) -> None:
    """Make every reader of `old` read `new`. A graph's output is never `old`: it keeps its name."""
    for user, position in tuple(old.uses()):
        user.replace_input_with(position, new)


def absorb_weights(model: ir.Model, prefix: str) -> dict[str, dict]:
    """Transpose and reshape the weights once, here, instead of in every run; each keeps its name in torch.

    Returns parameter -> {"shape": in torch, "stored": in the file, "permutation": of torch's axes or None}, by which
    other weights go into the same file, and an engine is refitted.
    """
    table = {}
    for name, value in list(model.graph.initializers.items()):
        if not name.startswith(prefix):
            continue
        weight, permutation = value.const_value, None
        shape = tuple(weight.shape.numpy())
        while len(value.uses()) == 1:
            node = value.uses()[0].node
            if node.op_type not in _MOVES or node.inputs[0] is not value or not _constant(node.inputs[1:]):
                break
            if node.op_type == "Transpose":
                permutation = tuple(node.attributes["perm"].as_ints())
            weight = _moved(weight, node)
            value = _absorb(model, value, node, weight)
        short = name.removeprefix(prefix)
        del model.graph.initializers[value.name]
        value.name = short
        model.graph.initializers[short] = value
        table[short] = {"shape": shape, "stored": tuple(weight.shape.numpy()), "permutation": permutation}
    common.RemoveUnusedNodesPass()(model)  # and the axes of the removed transpositions
    return table


def _constant(values) -> bool:
    return all(value is None or value.const_value is not None for value in values)


def _moved(weight: ir.TensorProtocol, node: ir.Node) -> ir.TensorProtocol:
    """The weight after a node that only moves it; its bytes are computed when the file is written, and not kept."""
    if node.op_type == "Identity":
        return weight
    shape = node.outputs[0].shape.numpy()
    if node.op_type == "Transpose":
        axes = node.attributes["perm"].as_ints()

        def move(array: numpy.ndarray) -> numpy.ndarray:
            return numpy.ascontiguousarray(array.transpose(axes))
    else:

        def move(array: numpy.ndarray) -> numpy.ndarray:
            return array.reshape(shape)

    return ir.LazyTensor(
        lambda: ir.Tensor(move(weight.numpy()), dtype=weight.dtype), dtype=weight.dtype, shape=ir.Shape(shape)
    )


def _absorb(model: ir.Model, value: ir.Value, node: ir.Node, weight: ir.TensorProtocol) -> ir.Value:
    """Replace the node with the moved weight."""
    moved = ir.Value(name=f"{value.name}.moved", const_value=weight, type=value.type, shape=ir.Shape(weight.shape))
    model.graph.initializers[moved.name] = moved
    _replace(node.outputs[0], moved)
    model.graph.remove(node, safe=True)
    del model.graph.initializers[value.name]
    return moved


def name_dims(model: ir.Model, inputs: dict[str, dict[int, str]], outputs: dict[str, dict[int, str]]) -> None:
    """Name batch, height, width and sequence on inputs and outputs; runtimes infer the inner shapes themselves."""
    for values, named in ((model.graph.inputs, inputs), (model.graph.outputs, outputs)):
        for value in values:
            names = named[value.name]
            value.shape = ir.Shape([names.get(k, d if isinstance(d, int) else None) for k, d in enumerate(value.shape)])
    edges = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    for node in model.graph:
        for value in node.outputs:
            if value.name not in edges:
                value.shape, value.type = None, None


def anonymise(model: ir.Model) -> None:
    """Remove traces of the exporting machine: torch records the path and source line of every node."""
    model.metadata_props.clear()
    model.graph.metadata_props.clear()
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    for node in model.graph:
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
    model.doc_string = model.graph.doc_string = None
    model.graph.name = "main"
