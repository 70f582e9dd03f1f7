"""Linear layers in 8 bits: each output has a scale of its own, and integer products know no signed weights."""

import numpy
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from koala.export.quantise import dynamic, weight_only


def quantised(quantise, weight) -> onnx.ModelProto:
    """One linear layer x (8, 64) @ weight in 8 bits."""
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["product"], name="product"),
            helper.make_node("Identity", ["product"], ["y"], name="out"),
        ],
        "linear",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [8, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [8, 2])],
        [numpy_helper.from_array(weight, "w")],
    )
    model = ir.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9))
    quantise(model)
    return ir.to_proto(model)


def layer() -> tuple[numpy.ndarray, numpy.ndarray]:
    """x, and a weight whose first output is a ten-thousandth of its second."""
    rng = numpy.random.default_rng(0)
    weight = rng.standard_normal((64, 2)).astype(numpy.float32) * numpy.array([1e-4, 1.0], numpy.float32)
    return rng.standard_normal((8, 64)).astype(numpy.float32), weight


@pytest.mark.parametrize("quantise", [weight_only, dynamic])
def test_a_small_output_beside_a_large_one_keeps_its_digits(quantise):
    """One scale for the whole matrix would round the first output to zero."""
    x, weight = layer()
    proto = quantised(quantise, weight)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    (result,) = session.run(None, {"x": x})
    exact = x @ weight
    error = numpy.linalg.norm(result - exact, axis=0) / numpy.linalg.norm(exact, axis=0)
    assert (error < 0.02).all(), error


@pytest.mark.parametrize(
    ("quantise", "dtype", "zero"), [(weight_only, TensorProto.INT8, 0), (dynamic, TensorProto.UINT8, 128)]
)
def test_the_largest_weight_of_each_output_is_127_levels_from_zero(quantise, dtype, zero):
    _, weight = layer()
    stored = {t.name: t for t in quantised(quantise, weight).graph.initializer}
    (levels,) = (t for t in stored.values() if len(t.dims) == 2)
    assert levels.data_type == dtype
    wanted = numpy.round(weight / (abs(weight).max(axis=0) / 127)) + zero
    assert numpy.array_equal(numpy_helper.to_array(levels), wanted)
    assert "w" not in stored


def test_integer_products_have_unsigned_weights_and_their_zero_point():
    """Signed weights saturate in ONNX Runtime on x86 without VNNI: two products of 255 * 127 do not fit in 16 bits."""
    graph = quantised(dynamic, layer()[1]).graph
    stored = {t.name: numpy_helper.to_array(t) for t in graph.initializer}
    (product,) = (node for node in graph.node if node.op_type == "MatMulInteger")
    assert stored[product.input[1]].dtype == numpy.uint8
    assert stored[product.input[3]] == 128 and stored[product.input[3]].dtype == numpy.uint8
    assert not [name for name, values in stored.items() if values.dtype == numpy.int8]
