"""Linear layers in 8 bits: each output has a scale of its own."""

import numpy
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from export.quantise import dynamic, weight_only


@pytest.mark.parametrize("quantise", [weight_only, dynamic])
def test_a_small_output_beside_a_large_one_keeps_its_digits(quantise):
    """One scale for the whole matrix would round the first output, a ten-thousandth of the second, to zero."""
    rng = numpy.random.default_rng(0)
    weight = rng.standard_normal((64, 2)).astype(numpy.float32) * numpy.array([1e-4, 1.0], numpy.float32)
    x = rng.standard_normal((8, 64)).astype(numpy.float32)
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
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"x": x})
    exact = x @ weight
    error = numpy.linalg.norm(found - exact, axis=0) / numpy.linalg.norm(exact, axis=0)
    assert (error < 0.02).all(), error
    stored = [i for i in onnx.load_from_string(ir.to_proto(model).SerializeToString()).graph.initializer]
    assert any(i.data_type in (TensorProto.INT8, TensorProto.UINT8) for i in stored)
