"""`export inspect`: what it says of a folder is what the files hold, and memory follows the shapes."""

import dataclasses
import json
import shutil
from collections import Counter

import onnx
import pytest
from onnx import TensorProto, helper

from koala.export.command import main
from koala.export.inspection import live_bytes
from koala.export.quantise import DYNAMIC
from koala.files.hashing import sha256
from koala.models.export_manifest import MANIFEST, UNET, Exported
from tests.export.signed import signed_export


@pytest.fixture(scope="module")
def inspected(exported_700m):
    from koala.export.inspection import inspect

    return inspect(exported_700m).to_dict()


def test_operators_sizes_and_edges_are_those_of_the_files(exported_700m, inspected):
    for name, part in inspected["components"].items():
        file = exported_700m / name / "model.onnx"
        model = onnx.load(file)
        assert part["operators"] == Counter(node.op_type for node in model.graph.node)
        assert part["files"] == {f"{name}/model.onnx": file.stat().st_size}
        assert list(part["inputs"]) == [i.name for i in model.graph.input]
        assert part["metadata"].keys() == {p.key.removeprefix("koala.") for p in model.metadata_props}
    assert inspected["components"]["unet"]["inputs"]["sample"] == ("float16", ["batch", 4, "height", "width"])
    assert inspected["bytes"] == sum(f.stat().st_size for f in exported_700m.rglob("*") if f.is_file())
    assert inspected["problems"] == ()


def test_every_file_says_its_model_dtype_licence_and_the_hashes_of_its_weights(exported_700m, embedded):
    weights = embedded / "tiny-koala-700m" / "unet" / "diffusion_pytorch_model.safetensors"
    dtypes = {}
    for file in sorted(exported_700m.glob("*/model.onnx")):
        metadata = {p.key: p.value for p in onnx.load(file, load_external_data=False).metadata_props}
        assert metadata["koala.model"] == "tiny-koala-700m" and metadata["koala.licence"] == "Apache-2.0"
        hashes = json.loads(metadata["koala.source_sha256"])
        assert hashes["unet/diffusion_pytorch_model.safetensors"] == sha256(weights)
        assert not any(name.startswith("/") for name in hashes)
        dtypes[metadata["koala.component"]] = metadata["koala.dtype"]
    assert dtypes == {
        "unet": "float16",
        "text_encoder": "float16",
        "text_encoder_2": "float16",
        "vae_decoder": "float32",
        "vae_encoder": "float32",
    }


def test_memory_is_told_at_three_sizes_and_grows_with_the_pixels(inspected):
    small, usual, large = inspected["memory"]
    assert [(m["width"], m["height"], m["batch"]) for m in inspected["memory"]] == [(s, s, 2) for s in (128, 256, 384)]
    weights = sum(count for part in inspected["components"].values() for count in part["files"].values())
    assert {m["weights_bytes"] for m in inspected["memory"]} == {weights}
    # Convolutions grow with the pixels, attention with their square.
    assert 4 <= usual["tensors_bytes"] / small["tensors_bytes"] <= 16
    assert usual["bytes"] == weights + usual["tensors_bytes"] < large["bytes"]


def graph(tmp_path, nodes, opset=20, inputs=("x",)):
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", 8, "height", "width"]) for n in inputs]
    output = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    built = helper.make_graph(nodes, "g", values, [output])
    file = tmp_path / "model.onnx"
    onnx.save(helper.make_model(built, opset_imports=[helper.make_opsetid("", opset)], ir_version=10), file)
    return file


SIZES = {"batch": 2, "height": 5, "width": 7}
ONE = 2 * 8 * 5 * 7 * 4  # bytes of an input


def test_tensors_die_after_their_last_reader(tmp_path):
    chain = [helper.make_node("Relu", [a], [b]) for a, b in (("x", "a"), ("a", "b"), ("b", "y"))]
    assert live_bytes(graph(tmp_path, chain), SIZES) == 2 * ONE
    skip = [*chain[:2], helper.make_node("Add", ["x", "b"], ["y"])]
    assert live_bytes(graph(tmp_path, skip), SIZES) == 3 * ONE
    wide = [helper.make_node("Concat", ["x", "x", "x"], ["a"], axis=1), helper.make_node("Relu", ["a"], ["y"])]
    assert live_bytes(graph(tmp_path, wide), SIZES) == 2 * 3 * ONE


def test_operators_that_shape_inference_does_not_know_keep_their_inputs_shape(tmp_path):
    attention = [helper.make_node("Attention", ["q", "k", "v"], ["a"]), helper.make_node("Relu", ["a"], ["y"])]
    assert live_bytes(graph(tmp_path, attention, 23, ("q", "k", "v")), SIZES) == 4 * ONE


def test_the_command_prints_one_json_object_or_lines(exported_700m, inspected, capsys):
    assert main(["inspect", str(exported_700m), "--json"]) == 0
    printed = capsys.readouterr()
    assert json.loads(printed.out) == json.loads(json.dumps(inspected)) and printed.err == ""
    assert main(["inspect", str(exported_700m)]) == 0
    text = capsys.readouterr().out
    assert "sample  float16 [batch, 4, height, width]" in text and "256x256 px, batch 2: about" in text


def test_signed_weights_are_told_without_the_model(exported_700m, tmp_path, capsys):
    old = signed_export(exported_700m, tmp_path / "old")
    dataclasses.replace(Exported.read(old), model="somebody's").write(old)
    assert main(["inspect", str(old), "--json"]) == 1
    printed = json.loads(capsys.readouterr().out)
    assert printed["dtype"] == DYNAMIC and "signed 8-bit integers" in printed["problems"][0]


DAMAGE = {
    "no export": (lambda folder: (folder / MANIFEST).unlink(), "is not an export"),
    "no manifest to read": (lambda folder: (folder / MANIFEST).write_text("{"), "damaged"),
    "cut": (lambda folder: (folder / UNET).write_bytes((folder / UNET).read_bytes()[:1000]), "was changed after"),
    "gone": (lambda folder: (folder / UNET).unlink(), "unet/model.onnx is missing"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_what_cannot_be_inspected_is_one_line_and_exit_2(case, exported_700m, tmp_path, capsys):
    damage, says = DAMAGE[case]
    folder = shutil.copytree(exported_700m, tmp_path / "export")
    damage(folder)
    assert main(["inspect", str(folder), "--json"]) == 2
    captured = capsys.readouterr()
    assert says in captured.err and captured.err.count("\n") == 1 and captured.out == ""


def test_a_file_that_is_no_onnx_although_its_hash_is_right_is_one_line(exported_700m, tmp_path, capsys):
    folder = shutil.copytree(exported_700m, tmp_path / "export")
    (folder / UNET).write_bytes(b"\x0a\xff\xff not a graph")
    values = json.loads((folder / MANIFEST).read_text())
    values["components"]["unet"]["files"][UNET] = sha256(folder / UNET)
    (folder / MANIFEST).write_text(json.dumps(values))
    assert main(["inspect", str(folder)]) == 2
    captured = capsys.readouterr()
    assert "is not a complete ONNX file" in captured.err and captured.err.count("\n") == 1
