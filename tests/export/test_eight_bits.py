"""Exports in 8 bits and the operators of every target: what the gates refuse, from the file and from its pictures."""

import dataclasses
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy
import onnx
import onnx_ir as ir
import pytest
import torch
from PIL import Image

from koala.export import folder, quantise
from koala.export.command import main
from koala.export.gates import numbers, pictures, structure
from koala.export.gates.case import open_case
from koala.export.gates.numbers import widen
from koala.export.gates.structure import unwanted
from koala.export.targets import TARGETS
from koala.models.export_manifest import UNET, Exported
from koala.models.library import Library
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
    wanted, result = (numbers.onnx_call(tmp_path / name)(given) for name in ("twin.onnx", "small.onnx"))
    error = numbers.error(result, wanted)
    print(f"{kind}: {error:.4f} off, {before / after:.2f}x smaller")
    assert 0 < error < bound and after < 0.62 * before


def test_of_a_large_model_in_8_bits_every_timestep_counts_and_its_pictures_are_said_to_be_unknown(
    exported_700m, tmp_path, monkeypatch
):
    monkeypatch.setattr(folder, "LARGE", 1_000)  # parameters
    copy = said_to_be(exported_700m, tmp_path, dtype=quantise.WEIGHT_ONLY, target="int8-weights")
    case = open_case(copy)
    assert [s.timestep for s in numbers.calls(case)] == [1.0, 500.0, 999.0]
    result = pictures.pictures(case)
    assert result.passed is None and "at 35 dB is NOT known" in result.text


def test_signed_weights_fail_whatever_the_processor_makes_of_them(exported_700m, tmp_path, capsys):
    """Symptom: pictures down to 7 dB on x86 without VNNI, from a file that passed its gates on another machine."""
    old, new = (make(exported_700m, tmp_path / make.__name__) for make in (signed_export, unsigned_export))
    result = structure.structure(open_case(old))
    assert result.passed is False and "156 tensors of signed 8-bit integers" in result.text
    assert main(["verify", str(old)]) == 1
    assert "signed 8-bit integers" in capsys.readouterr().out
    result = structure.structure(open_case(new))
    assert result.passed, result.text


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
        message = [text for text in unwanted(holding(kind), TARGETS[target]) if f"must not have: {kind}" in text]
        assert message, (target, kind)
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
    near = {"first": 0.001, "middle": 0.002, "last": 0.005}
    result = pictures._verdict(open_case(copy), {"file": figures}, near)
    assert result.passed is passes
    assert passes or f"{below} of {count} pictures are less than 35 dB like torch's, the worst 20.0 dB" in result.text


def test_the_error_in_the_last_step_counts(exported_700m, tmp_path):
    figures = {"pictures": 6, "psnr_mean": 50.0, "psnr_least": 40.0, "psnr_below_35": 0, "ssim_mean": 0.99}
    figures |= {"verdicts_differ": 0, "right": 6, "right_torch_fp32": 6}
    case = open_case(said_to_be(exported_700m, tmp_path, dtype=quantise.DYNAMIC))
    result = pictures._verdict(case, {"file": figures}, {"first": 0.001, "middle": 0.004, "last": 0.0051})
    assert result.passed is False and "0.51 % off torch's in the last step of a run, above 0.5 %" in result.text


@pytest.mark.slow
def test_attention_at_the_highest_resolution_stays_in_full_precision(exported_700m, tmp_path, monkeypatch):
    """Symptom: 0.2 % off on noise and 2 % in the last step, so that 12 of 200 pictures became others."""
    model = Library("cpu", dtype="float32").get("tiny-koala-700m")
    with pictures._overheard(model) as calls:
        pictures._draw(model, ["a red circle on a white background"])
    errors = {}
    for name in ("all", "kept"):
        if name == "all":
            monkeypatch.setattr(quantise, "_outermost", lambda weights: set())
        else:
            monkeypatch.undo()
        folder = unsigned_export(exported_700m, tmp_path / name)
        errors[name] = pictures._along(open_case(folder), calls)
        stored = {i.name for i in onnx.load(folder / UNET).graph.initializer}
        outer = [n for n in stored if re.match(r"(down|up)_blocks\.1\.attentions.*\.uint8$", n)]
        inner = [n for n in stored if re.match(r"(down_blocks\.2|up_blocks\.0)\.attentions.*\.uint8$", n)]
        assert (len(outer), len(inner)) == ((66, 156) if name == "all" else (0, 156))
    print(errors)
    assert errors["kept"]["last"] <= 0.005 and errors["kept"]["last"] < 0.4 * errors["all"]["last"]


def test_where_all_attention_has_one_width_every_matrix_is_stored_in_8_bits():
    weights = [
        SimpleNamespace(name=f"{block}.attentions.0.proj_in.weight", shape=(width, width))
        for block, width in (("down_blocks.1", 64), ("down_blocks.2", 64), ("mid_block", 64), ("up_blocks.0", 64))
    ]
    assert quantise._outermost(weights) == set()
    weights[0].shape = (32, 32)
    assert quantise._outermost(weights) == {"down_blocks.1"}


def test_in_8_bits_six_pictures_are_drawn_at_least(exported_700m, tmp_path, monkeypatch):
    copy = said_to_be(exported_700m, tmp_path, dtype=quantise.DYNAMIC)
    drawn = []

    def draw(model, texts, lora=None):
        drawn.append(len(texts))
        return [Image.new("RGB", (64, 64), "red")] * len(texts)

    stub = SimpleNamespace(pipeline=SimpleNamespace(unet=torch.nn.Identity()))
    monkeypatch.setattr(pictures, "_draw", draw)
    monkeypatch.setattr(pictures, "Library", lambda *_, **__: SimpleNamespace(get=lambda name: stub))
    monkeypatch.setattr(pictures, "_along", lambda case, calls: {"last": 0.0})
    assert pictures.pictures(open_case(copy, prompts=1)).figures["file"]["pictures"] == 6
    pictures.pictures(open_case(exported_700m, prompts=1))
    assert drawn[0] == 6 and drawn[-1] == 1
