"""The gates: a good export passes with figures, and every way to be wrong that is known is found."""

import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy
import onnx
import pytest
import torch
from safetensors.torch import save_file

from koala.errors import UserError
from koala.export import folder, wrappers
from koala.export.gates import numbers, pictures, structure
from koala.export.gates.case import Finding, open_case
from koala.export.gates.numbers import widen
from koala.export.gates.pictures import psnr
from koala.export.islands import float_islands, islands
from koala.export.verify import Report, verify
from koala.models.export_manifest import MANIFEST, UNET, Exported
from koala.models.library import Library
from koala.unet.specs import TINY_SDXL
from tests.lora.test_lora import ATTENTION, factors, kohya


def copy_of(export: Path, to: Path) -> Path:
    return shutil.copytree(export, to / "export")


def changed(export: Path, to: Path, change) -> Path:
    """A copy of an export whose U-Net was changed as an onnx.ModelProto."""
    copy = copy_of(export, to)
    model = onnx.load(copy / UNET)
    change(model)
    onnx.save(model, copy / UNET)
    return copy


def test_a_good_export_passes_its_structure(exported_700m):
    finding = structure.structure(open_case(exported_700m))
    assert finding.passed, finding.text
    assert finding.figures["operators"]["unet"]["MatMul"] > 100


def test_the_unet_computes_what_torch_does_at_any_size(exported_700m, monkeypatch):
    """One size that is no multiple of 32 px, 154 tokens, a batch of 4, the first timestep."""
    odd = numbers.Shape(width=152, height=136, batch=4, tokens=154, timestep=1.0)
    monkeypatch.setattr(numbers, "calls", lambda case: [odd])
    finding = numbers.numbers(open_case(exported_700m))
    print(finding.text)
    assert finding.passed, finding.text
    assert finding.figures["worst"]["twin"] < 1e-5


def test_all_calls_are_those_that_are_promised(exported_700m):
    shapes = numbers.calls(open_case(exported_700m))
    assert len({(s.width, s.height) for s in shapes}) == 3
    assert any(s.width % 32 and s.height % 32 for s in shapes)
    assert {s.batch for s in shapes} == {1, 2, 4} and {s.tokens for s in shapes} == {77, 154}
    assert {s.timestep for s in shapes} == {1.0, 500.0, 999.0}


def test_text_encoders_and_vae_compute_what_torch_does(exported_700m):
    finding = numbers.parts(open_case(exported_700m))
    print(finding.text)
    assert finding.passed, finding.text


@pytest.mark.parametrize(
    ("part", "first", "second"),
    [
        ("text_encoder", "hidden_states.1", "hidden_states.2"),
        ("text_encoder_2", "last_hidden_state", "hidden_states.3"),
    ],
)
def test_outputs_under_each_others_names_are_found(exported_700m, tmp_path, part, first, second):
    """Symptom: the gate compared what was traced with itself, in the order of the outputs."""
    copy = copy_of(exported_700m, tmp_path)
    model = onnx.load(copy / part / "model.onnx")
    swap = {first: second, second: first}
    for output in model.graph.output:
        output.name = swap.get(output.name, output.name)
    for node in model.graph.node:
        for names in (node.input, node.output):
            for k, name in enumerate(names):
                names[k] = swap.get(name, name)
    onnx.save(model, copy / part / "model.onnx")
    finding = numbers.parts(open_case(copy))
    assert finding.passed is False and f"{part} is" in finding.text and "off torch's fp32" in finding.text


def test_of_a_large_model_pictures_are_left_out_unless_they_are_asked_for(exported_700m, monkeypatch):
    monkeypatch.setattr(folder, "LARGE", 1_000)  # parameters
    case = open_case(exported_700m)
    finding = pictures.pictures(case)
    assert finding.passed is None and "draw them with --thorough" in finding.text
    assert [(s.width, s.height, s.batch) for s in numbers.calls(case)] == [(512, 512, 1)]
    thorough = open_case(exported_700m, thorough=True)
    assert not thorough.large and len(numbers.calls(thorough)) == 9


def foreign_operator(model):
    next(n for n in model.graph.node if n.op_type == "Gelu").domain = "com.microsoft"
    model.opset_import.append(onnx.helper.make_opsetid("com.microsoft", 1))


def mixed_types(model):
    """What a naive export of SDXL's U-Net has: fp16 text joins fp32 sizes."""
    cast = next(n for n in model.graph.node if n.op_type == "Cast" and n.input[0] == "text_embeds")
    for node in model.graph.node:
        for k, name in enumerate(node.input):
            if name == cast.output[0]:
                node.input[k] = "text_embeds"
    model.graph.node.remove(cast)


def nan(model):
    weight = next(t for t in model.graph.initializer if t.name == "conv_in.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0, 0, 0, 0] = numpy.nan
    weight.raw_data = values.tobytes()


def clipped(model):
    weight = next(t for t in model.graph.initializer if t.name == "conv_in.weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0] = 65504
    weight.raw_data = values.tobytes()


def a_path(model):
    onnx.helper.set_model_props(model, {"koala.model": "x", "where": "/home/me/models/x.py"})


def odd_name(model):
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "4*(((height - 1)//4)) + 4"


def half_timestep(model):
    model.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.DOUBLE


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (foreign_operator, "outside the standard|com.microsoft"),
        (mixed_types, "type"),
        (nan, "conv_in.weight is not finite"),
        (clipped, "36 weights are at fp16's limit"),
        (a_path, "a path of the machine that wrote it: /home/me"),
        (odd_name, "cannot override by name"),
        (half_timestep, "timestep|[Tt]ype"),
    ],
)
def test_a_file_that_is_wrong_is_found(exported_700m, tmp_path, change, message):
    finding = structure.structure(open_case(changed(exported_700m, tmp_path, change)))
    assert finding.passed is False
    assert re.search(message, finding.text), finding.text


def test_other_weights_are_found(exported_700m, tmp_path, monkeypatch):
    def scale(model):
        weight = next(t for t in model.graph.initializer if t.name == "conv_out.weight")
        weight.raw_data = (onnx.numpy_helper.to_array(weight) * numpy.float16(1.01)).tobytes()

    one = numbers.Shape(width=128, height=128, batch=1, tokens=77, timestep=500.0)
    monkeypatch.setattr(numbers, "calls", lambda case: [one])
    finding = numbers.numbers(open_case(changed(exported_700m, tmp_path, scale)))
    assert finding.passed is False and "the fp32 twin is" in finding.text


def test_a_file_edited_after_the_export_is_refused_by_name(exported_700m, tmp_path):
    copy = copy_of(exported_700m, tmp_path)
    with open(copy / UNET, "ab") as file:
        file.write(b"\0")
    with pytest.raises(UserError, match="unet/model.onnx was changed after the export"):
        verify(copy)


def test_an_export_of_other_weights_is_not_compared(exported_700m, tmp_path):
    copy = copy_of(exported_700m, tmp_path)
    values = json.loads((copy / MANIFEST).read_text())
    values["source"]["unet/diffusion_pytorch_model.safetensors"] = "0" * 64
    (copy / MANIFEST).write_text(json.dumps(values))
    with pytest.raises(UserError, match="differs from the weights"):
        open_case(copy)


def test_a_folders_export_tells_no_path_and_asks_where_the_folder_is(exported_700m, embedded, tmp_path):
    """Symptom: the model of a folder was named by its path, in a file that others get."""
    model_folder = shutil.copytree(embedded / "tiny-koala-700m", tmp_path / "my-koala")
    manifest = folder._manifest(folder.plan(str(model_folder)))
    assert manifest.model == "my-koala" and str(tmp_path) not in json.dumps(dataclasses.asdict(manifest))
    copy = copy_of(exported_700m, tmp_path)
    dataclasses.replace(Exported.read(copy), model="my-koala").write(copy)
    with pytest.raises(UserError, match="--model FOLDER"):
        open_case(copy)
    assert open_case(copy, model=str(model_folder)).job.card.source == str(model_folder)


def test_a_fused_lora_must_be_given_to_be_compared(exported_700m, tmp_path):
    copy = copy_of(exported_700m, tmp_path)
    fused = {"name": "style.safetensors", "sha256": "0" * 64, "strength": 1.0}
    dataclasses.replace(Exported.read(copy), lora=fused).write(copy)
    with pytest.raises(UserError, match="--lora style.safetensors"):
        open_case(copy)
    other_lora = tmp_path / "style.safetensors"
    other_lora.write_bytes(b"x")
    with pytest.raises(UserError, match="is not the LoRA"):
        open_case(copy, lora=other_lora)


def test_the_twin_is_the_same_graph_in_fp32(exported_700m, tmp_path):
    file, twin = exported_700m / UNET, widen(exported_700m / UNET, tmp_path / "twin.onnx")
    fp16, fp32 = onnx.load(file), onnx.load(twin)
    assert [n.op_type for n in fp16.graph.node] == [n.op_type for n in fp32.graph.node]
    assert all(t.data_type != onnx.TensorProto.FLOAT16 for t in fp32.graph.initializer)
    onnx.checker.check_model(str(twin), full_check=True)


def test_a_report_that_failed_says_so():
    findings = (
        Finding(gate="structure", passed=True, text="good"),
        Finding(gate="numbers", passed=False, text="bad"),
        Finding(gate="pictures", passed=None, text="not drawn"),
    )
    report = Report(model="x", target="universal", dtype="float16", findings=findings)
    assert not report.passed and report.skipped == ("pictures",)
    assert report.lines()[1].startswith("FAIL  numbers")


# --- islands


def test_the_smallest_module_that_gives_back_a_value_in_range_is_kept_in_fp32():
    peaks = {
        "up.0": 900.0,
        "up.0.resnets.0": 4e3,
        "up.0.resnets.0.conv1": 1e6,
        "up.0.resnets.0.norm2": 7.0,
        "up.0.attentions.0": 3e2,
        "up.0.attentions.0.ff": 8e4,
        "up.0.attentions.0.ff.net.0": 9e4,
        "mid.attn1": 3.0,
        "mid.attn1 logits": 1e5,
    }
    assert islands(peaks) == ("mid.attn1", "up.0.attentions.0", "up.0.resnets.0")
    assert islands({name: min(v, 100.0) for name, v in peaks.items()}) == ()


def test_an_island_holds_what_fp16_cannot():
    """A residual block whose first convolution goes beyond 65504, and whose norm makes it small again."""
    case = folder.plan("tiny-koala-700m")
    name = "up_blocks.0.resnets.0"
    loud = folder.load(dataclasses.replace(case, dtype="float32"), "unet")
    with torch.no_grad():
        loud.get_submodule(f"{name}.conv1").weight *= 4000
    given = {n: v for n, v in wrappers.unet(loud).inputs.items()}
    torch.manual_seed(0)
    with torch.inference_mode():
        wanted = wrappers.unet(loud).module(**given)
        half = loud.half()
        cast = {n: v if n in ("timestep", "time_ids") else v.half() for n, v in given.items()}
        without = wrappers.unet(half).module(**cast)
        float_islands(half, [name])
        output = wrappers.unet(half).module(**cast)
    assert not torch.isfinite(without).all()
    error = numbers.error(output.float().numpy(), wanted.numpy())
    print(f"with an island {error:.1e} off")
    assert output.dtype == torch.float16 and error < 5e-3


@pytest.mark.slow
def test_every_gate_passes_on_an_embedded_model(exported_700m):
    report = verify(exported_700m, prompts=4)
    print("\n".join(report.lines()))
    assert report.passed and not report.skipped


@pytest.mark.slow
def test_torch_draws_with_the_lora_that_a_file_has_in_its_weights(tmp_path):
    """Symptom: every whole export with a LoRA failed its pictures, for torch drew without."""
    lora = folder.Lora(file=tmp_path / "lora.safetensors", strength=0.5)
    save_file(kohya(factors(TINY_SDXL, ATTENTION)), lora.file)
    text = ["a red circle"]
    model, fused = (Library("cpu", dtype="float32").get("tiny-koala-700m") for _ in range(2))
    job = dataclasses.replace(folder.plan("tiny-koala-700m", lora=lora), dtype="float32")
    fused.pipeline.unet.load_state_dict(folder.load(job, "unet").state_dict())
    (wanted,), (plain,), (drawn,) = (
        pictures._draw(*how) for how in ((fused, text), (model, text), (model, text, lora))
    )
    print(f"with the LoRA {psnr(drawn, wanted):.1f} dB, without {psnr(plain, wanted):.1f} dB")
    assert psnr(drawn, wanted) > 40 > 20 > psnr(plain, wanted)
