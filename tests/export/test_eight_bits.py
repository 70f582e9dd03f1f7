"""Exports in 8 bits and the operators of every target: what the gates refuse, from the file and from its pictures."""

import dataclasses
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy
import onnx
import onnx_ir as ir
import pytest
from PIL import Image

from export import folder, quantise
from export.command import main
from export.gates import numbers, pictures, structure
from export.gates.case import open_case
from export.gates.operators import unwanted
from export.gates.twin import widen
from export.targets import TARGETS
from koala.exported import UNET, Exported
from tests.export.signed import signed_export, unsigned_export


def said_to_be(export: Path, to: Path, **fields) -> Path:
    """A copy whose manifest says something else."""
    copy = shutil.copytree(export, to / "export")
    dataclasses.replace(Exported.read(copy), **fields).write(copy)
    return copy


@pytest.mark.parametrize(("kind", "bound"), [(quantise.WEIGHT_ONLY, 0.005), (quantise.DYNAMIC, 0.005)])
def test_eight_bits_are_near_and_standard(exported_700m, tmp_path, kind, bound):
    """On the fp32 twin of the exported U-Net, so that nothing is traced again."""
    model = ir.load(widen(exported_700m / UNET, tmp_path / "twin.onnx"))
    before = sum(v.const_value.nbytes for v in model.graph.initializers.values())
    quantise.QUANTISERS[kind](model)
    after = sum(v.const_value.nbytes for v in model.graph.initializers.values())
    for node in model.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape, value.type = None, None
    ir.save(model, tmp_path / "small.onnx")
    onnx.checker.check_model(str(tmp_path / "small.onnx"), full_check=True)
    assert {n.domain for n in model.graph} == {""}
    case = open_case(exported_700m)
    given = numbers.inputs(case, numbers.Shape(width=128, height=128, batch=2, tokens=77, timestep=500.0))
    wanted, found = (numbers.onnx_call(tmp_path / name)(given) for name in ("twin.onnx", "small.onnx"))
    error = numbers.error(found, wanted)
    print(f"{kind}: {error:.4f} off, {before / after:.2f}x smaller")
    assert 0 < error < bound and after < 0.62 * before


def test_of_a_large_model_in_8_bits_every_timestep_counts_and_its_pictures_are_said_to_be_unknown(
    exported_700m, tmp_path, monkeypatch
):
    monkeypatch.setattr(folder, "LARGE", 1_000)  # parameters
    copy = said_to_be(exported_700m, tmp_path, dtype=quantise.WEIGHT_ONLY, target="int8-weights")
    case = open_case(copy)
    assert [s.timestep for s in numbers.calls(case)] == [1.0, 500.0, 999.0]
    found = pictures.pictures(case)
    assert found.passed is None and "at 35 dB is NOT known" in found.text


def test_signed_weights_fail_whatever_the_processor_makes_of_them(exported_700m, tmp_path, capsys):
    """Symptom: pictures down to 7 dB on x86 without VNNI, from a file that passed its gates on another machine."""
    old, new = (make(exported_700m, tmp_path / make.__name__) for make in (signed_export, unsigned_export))
    found = structure.structure(open_case(old))
    assert found.passed is False and "222 tensors of signed 8-bit integers" in found.text
    assert main(["verify", str(old)]) == 1
    assert "signed 8-bit integers" in capsys.readouterr().out
    found = structure.structure(open_case(new))
    assert found.passed, found.text


REFUSED = {
    "universal": (
        "Attention",
        "GroupNormalization",
        "MatMulInteger",
        "DequantizeLinear",
        "NonZero",
        "If",
        "RandomNormal",
    ),
    "tensorrt": ("MatMulInteger", "DynamicQuantizeLinear", "QLinearConv", "NonMaxSuppression", "Loop"),
    "cpu-int8": ("ConvInteger", "QLinearMatMul", "DequantizeLinear", "Attention"),
    "int8-weights": ("MatMulInteger", "DynamicQuantizeLinear", "QuantizeLinear", "GroupNormalization"),
}
TAKEN = {
    "universal": ("MatMul", "Gelu", "InstanceNormalization", "LayerNormalization"),
    "tensorrt": ("Attention", "GroupNormalization"),
    "cpu-int8": ("DynamicQuantizeLinear",),
    "int8-weights": ("DequantizeLinear",),
}


def holding(kind: str, dtype=ir.DataType.FLOAT) -> ir.Model:
    """A graph of one operator, with one weight."""
    x = ir.Value(name="x", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape([2, 2]))
    weight = ir.Value(name="w", const_value=ir.Tensor(numpy.ones((2, 2), dtype.numpy()), name="w"))
    node = ir.node(kind, [x, weight])
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 20})
    return ir.Model(graph, ir_version=10)


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_has_operators_that_its_files_must_not_have(target):
    for kind in REFUSED[target]:
        said = [text for text in unwanted(holding(kind), TARGETS[target]) if f"must not have: {kind}" in text]
        assert said, (target, kind)
    for kind in TAKEN[target]:
        assert list(unwanted(holding(kind), TARGETS[target])) == []


def test_a_weight_that_is_not_known_to_be_unsigned_is_no_integer_product():
    cast = holding("MatMulInteger")  # of a float that no quantiser made
    assert "not known to be unsigned" in "".join(unwanted(cast, TARGETS["cpu-int8"]))
    signed = "".join(unwanted(holding("MatMul", ir.DataType.INT8), TARGETS["cpu-int8"]))
    assert "1 tensors of signed 8-bit integers, w the first" in signed
    assert list(unwanted(holding("DequantizeLinear", ir.DataType.INT8), TARGETS["int8-weights"])) == []


@pytest.mark.parametrize(("count", "below", "passes"), [(6, 0, True), (8, 1, False), (200, 4, True), (200, 5, False)])
def test_the_worst_picture_in_8_bits_counts(exported_700m, tmp_path, count, below, passes):
    copy = said_to_be(exported_700m, tmp_path, dtype=quantise.DYNAMIC)
    figures = {"pictures": count, "psnr_mean": 50.0, "psnr_least": 20.0, "psnr_below_35": below, "ssim_mean": 0.99}
    figures |= {"verdicts_differ": 0, "right": count, "right_torch_fp32": count}
    found = pictures._verdict(open_case(copy), {"file": figures})
    assert found.passed is passes
    assert passes or f"{below} of {count} pictures are less than 35 dB like torch's, the worst 20.0 dB" in found.text


def test_in_8_bits_six_pictures_are_drawn_at_least(exported_700m, tmp_path, monkeypatch):
    copy = said_to_be(exported_700m, tmp_path, dtype=quantise.DYNAMIC)
    drawn = []

    def draw(model, texts, lora=None):
        drawn.append(len(texts))
        return [Image.new("RGB", (64, 64), "red")] * len(texts)

    monkeypatch.setattr(pictures, "_draw", draw)
    monkeypatch.setattr(pictures, "Library", lambda *_, **__: SimpleNamespace(get=lambda name: None))
    assert pictures.pictures(open_case(copy, prompts=1)).figures["file"]["pictures"] == 6
    pictures.pictures(open_case(exported_700m, prompts=1))
    assert drawn[0] == 6 and drawn[-1] == 1
