"""The exported folder: layout, names, types, provenance, and what is refused before anything is written."""

import dataclasses
import json
import math
import re
import shutil

import numpy
import onnx
import onnxruntime
import pytest
import torch
from safetensors.torch import load_file, save_file

from koala.errors import UserError
from koala.export import command, folder, to_onnx, wrappers
from koala.export.command import parse
from koala.export.estimate import estimate
from koala.export.folder import PARAMETERS, Lora, export, plan
from koala.files.hashing import sha256
from koala.models.export_manifest import MANIFEST, UNET, Exported
from koala.models.from_torch import load_part
from koala.models.locate import locate
from koala.models.registry import find
from koala.unet.specs import KOALA_1B, KOALA_700M, SDXL, TINY_SDXL
from tests.lora.test_lora import ATTENTION, factors, kohya

WHOLE = ("unet", "text_encoder", "text_encoder_2", "vae_decoder", "vae_encoder")


def declared(file) -> dict:
    """Every edge of an ONNX file: its type and its dimensions."""
    graph = onnx.load(file).graph

    def one(value):
        kind = value.type.tensor_type
        return onnx.TensorProto.DataType.Name(kind.elem_type), [d.dim_param or d.dim_value for d in kind.shape.dim]

    return {value.name: one(value) for value in (*graph.input, *graph.output)}


def test_the_layout_is_the_one_that_optimum_loads(exported_700m):
    files = {f.relative_to(exported_700m).as_posix() for f in exported_700m.rglob("*") if f.is_file()}
    wanted = {f"{name}/{file}" for name in WHOLE for file in ("model.onnx", "config.json")}
    wanted |= {f"{t}/{file}" for t in ("tokenizer", "tokenizer_2") for file in ("vocab.json", "merges.txt")}
    assert wanted | {"model_index.json", "scheduler/scheduler_config.json", MANIFEST} <= files
    assert not [f for f in files if f.endswith((".safetensors", ".bin"))]
    index = json.loads((exported_700m / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionXLPipeline"
    assert json.loads((exported_700m / "vae_decoder" / "config.json").read_text())["scaling_factor"] == 1.0


@pytest.mark.parametrize("part", WHOLE)
def test_no_node_reads_a_transposition_that_moves_no_axis(exported_700m, part):
    """ONNX Runtime 1.20 to 1.25 could not run text_encoder_2, whose projection read one."""
    nodes = onnx.load(exported_700m / part / "model.onnx", load_external_data=False).graph.node
    read = {name for node in nodes for name in node.input}
    orders = [list(a.ints) for n in nodes if n.op_type == "Transpose" and n.output[0] in read for a in n.attribute]
    assert orders and [order for order in orders if order == list(range(len(order)))] == []


def test_the_unet_declares_clean_names_and_types(exported_700m):
    tensors = declared(exported_700m / UNET)
    assert list(tensors) == [
        "sample", "timestep", "encoder_hidden_states", "text_embeds", "time_ids", "out_sample"
    ]  # fmt: skip
    assert tensors["sample"] == tensors["out_sample"] == ("FLOAT16", ["batch", 4, "height", "width"])
    assert tensors["timestep"] == ("FLOAT", [])
    assert tensors["encoder_hidden_states"] == ("FLOAT16", ["batch", "sequence", 96])
    assert tensors["text_embeds"] == ("FLOAT16", ["batch", 64])
    assert tensors["time_ids"] == ("FLOAT", ["batch", 6])


def test_the_manifest_says_where_it_comes_from_and_holds_every_file(exported_700m, embedded):
    manifest = Exported.read(exported_700m)
    manifest.check(exported_700m)
    assert (manifest.model, manifest.target, manifest.dtype, manifest.licence) == (
        "tiny-koala-700m", "universal", "float16", "Apache-2.0"
    )  # fmt: skip
    weights = embedded / "tiny-koala-700m" / "unet" / "diffusion_pytorch_model.safetensors"
    assert manifest.source["unet/diffusion_pytorch_model.safetensors"] == sha256(weights)
    assert manifest.components["unet"].parameters == 1_967_636
    assert set(manifest.components) == set(WHOLE)


def test_the_file_itself_says_what_it_is_and_nothing_of_this_machine(exported_700m):
    for name in WHOLE:
        model = onnx.load(exported_700m / name / "model.onnx")
        metadata = {p.key: p.value for p in model.metadata_props}
        assert metadata["koala.model"] == "tiny-koala-700m" and "torch" in metadata["koala.versions"]
        for node in model.graph.node:
            assert not node.metadata_props and not node.doc_string
        text = (exported_700m / name / "model.onnx").read_bytes()
        for word in (b"site-packages", b"stack_trace", str(folder.__file__).encode(), b"/tmp/"):
            assert word not in text, (name, word)


def test_a_file_changed_after_the_export_is_refused(exported_700m, tmp_path):
    copy = shutil.copytree(exported_700m, tmp_path / "export")
    with open(copy / UNET, "r+b") as file:
        file.seek(-1, 2)
        last = file.read(1)
        file.seek(-1, 2)
        file.write(bytes([last[0] ^ 1]))
    with pytest.raises(UserError, match="unet/model.onnx was changed after the export"):
        Exported.read(copy).check(copy)
    (copy / UNET).unlink()
    with pytest.raises(UserError, match="unet/model.onnx is missing"):
        Exported.read(copy).check(copy)


def test_a_folder_that_is_no_export_says_what_to_type(tmp_path, exported_700m):
    with pytest.raises(UserError, match="python -m koala export --model"):
        Exported.read(tmp_path)
    values = json.loads((exported_700m / MANIFEST).read_text())
    (tmp_path / MANIFEST).write_text(json.dumps(values | {"format": 99}))
    with pytest.raises(UserError, match="format 99"):
        Exported.read(tmp_path)
    (tmp_path / MANIFEST).write_text("{")
    with pytest.raises(UserError, match="damaged"):
        Exported.read(tmp_path)


def test_other_weights_go_into_the_same_graph_by_the_table(exported_700m, tmp_path):
    """Every parameter has its place: a file filled from torch by parameters.json is the exported one."""
    table = json.loads((exported_700m / "unet" / PARAMETERS).read_text())
    unet = folder.load(plan("tiny-koala-700m"), "unet")
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(exported_700m / UNET).graph.initializer}
    assert set(table) == {name for name, _ in unet.named_parameters()}
    for name, parameter in unet.named_parameters():
        entry, values = table[name], parameter.numpy()
        assert list(values.shape) == list(entry["shape"])
        if entry["permutation"]:
            values = values.transpose(entry["permutation"])
        assert numpy.array_equal(values.reshape(entry["stored"]), stored[name]), name


def text_encoder(dtype=torch.float32):
    return wrappers.text_encoder(load_part("text_encoder", locate(find("tiny-koala-700m")), dtype))


@pytest.fixture(scope="module")
def text_program():
    return to_onnx.trace(text_encoder())


@pytest.mark.slow
def test_the_same_export_gives_the_same_bytes(text_program, tmp_path):
    again = to_onnx.trace(text_encoder())
    files = []
    for number, program in enumerate((text_program, again)):
        graph = to_onnx.convert(program, 20)
        files += to_onnx.save(graph.model, tmp_path / str(number) / "model.onnx", {"koala.model": "x"})
    assert files[0].read_bytes() == files[1].read_bytes()


def test_what_is_too_large_for_one_file_gets_one_data_file(text_program, tmp_path, monkeypatch):
    monkeypatch.setattr(to_onnx, "SINGLE_FILE", 1000)
    files = to_onnx.save(to_onnx.convert(text_program, 20).model, tmp_path / "model.onnx", {})
    assert [f.name for f in files] == ["model.onnx", "model.onnx_data"]
    onnx.checker.check_model(str(files[0]), full_check=True)
    session = onnxruntime.InferenceSession(str(files[0]), providers=["CPUExecutionProvider"])
    ids = torch.randint(0, 600, (1, 77))
    with torch.no_grad():
        wanted = text_encoder().module(ids)[0].numpy()
    hidden = session.run(["last_hidden_state"], {"input_ids": ids.numpy()})[0]
    assert abs(hidden - wanted).max() < 1e-4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target": "directml"}, "unknown target 'directml'; choose one of universal, tensorrt, cpu-int8"),
        ({"target": "cpu-int8", "dtype": "fp16"}, "has fp32 weights, not fp16"),
        ({"components": "vae"}, "all or unet"),
    ],
)
def test_what_cannot_be_exported_is_said_at_once(settings, message):
    with pytest.raises(UserError, match=message):
        plan("tiny-koala-700m", **settings)


@pytest.mark.parametrize("count", ["0", "-3", "some"])
def test_a_gate_that_would_draw_nothing_is_bad_use(count, capsys):
    """Symptom: `--pictures 0` exported for a minute and ended in a traceback."""
    with pytest.raises(SystemExit) as stopped:
        parse(["verify", "DIR", f"--pictures={count}"])
    assert stopped.value.code == 2 and "give 1 or more" in capsys.readouterr().err


def test_a_folder_that_is_there_is_not_written_over(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(UserError, match="exists already"):
        export(plan("tiny-koala-700m", components="unet"), tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["mine.txt"]


def test_too_little_disk_or_memory_is_said_before_anything_is_written(tmp_path, monkeypatch):
    job = plan("tiny-koala-700m", components="unet")
    vast = dataclasses.replace(job.estimate, disk=10**18)
    with pytest.raises(UserError, match="GB free"):
        vast.check(tmp_path / "out")
    monkeypatch.setattr("koala.export.estimate.device_memory", lambda device: 10**8)
    with pytest.raises(UserError, match="GB of memory"):
        export(job, tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_gate_that_fails_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "_component", lambda job, name, where, exported, clock: (where / name).mkdir())

    def refuse(where):
        raise RuntimeError("the gate says no")

    with pytest.raises(RuntimeError, match="the gate says no"):
        export(plan("tiny-koala-700m", components="unet"), tmp_path / "out", check=refuse)
    assert not list(tmp_path.iterdir())


def test_the_estimate_grows_with_the_model():
    sizes = [estimate(spec, ("unet",), "float16") for spec in (KOALA_700M, KOALA_1B, SDXL)]
    assert sizes == sorted(sizes, key=lambda e: (e.memory, e.disk, e.seconds))
    assert 1.5e9 < sizes[0].disk < 1.6e9 and sizes[0].memory < 8e9


def test_a_lora_is_named_in_the_manifest_and_in_the_weights(tmp_path):
    file = tmp_path / "lora.safetensors"
    save_file(kohya(factors(TINY_SDXL, ATTENTION)), file)
    plain, fused = plan("tiny-koala-700m"), plan("tiny-koala-700m", lora=Lora(file=file, strength=0.5))
    before, after = (dict(folder.load(job, "unet").named_parameters()) for job in (plain, fused))
    assert before.keys() == after.keys()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed and all(".to_" in name or "proj" in name or "net" in name for name in changed)
    assert fused.lora.entry()["sha256"] == sha256(file)


def damaged(folder, part, name, value):
    """The folder with one number of one weight replaced."""
    file = next((folder / part).glob("*.safetensors"))
    weights = load_file(file)
    weights[name] = weights[name].float()
    weights[name].view(-1)[-1] = value
    save_file(weights, file, metadata={"format": "pt"})
    return file


@pytest.mark.parametrize(
    ("part", "name", "value"),
    [
        ("unet", "up_blocks.0.resnets.0.conv1.weight", math.nan),
        ("vae", "decoder.conv_in.bias", math.inf),
        ("text_encoder", "text_model.final_layer_norm.weight", -math.inf),
    ],
)
def test_a_weight_that_is_no_number_is_refused_by_its_name_before_anything_is_traced(
    tmp_path, embedded, part, name, value
):
    copy = shutil.copytree(embedded / "tiny-koala-700m", tmp_path / "mine")
    file = damaged(copy, part, name, value)
    with pytest.raises(UserError, match=f"{file} is damaged: its weight {name} holds NaN or infinity; copy or down"):
        export(plan(str(copy)), tmp_path / "out")
    assert [p.name for p in tmp_path.iterdir()] == ["mine"]


class Traced(Exception):
    """The export came as far as tracing."""


def test_a_weight_too_large_for_half_precision_is_refused_and_what_is_said_to_type_works(
    tmp_path, embedded, monkeypatch
):
    def trace(wrapper):
        raise Traced

    monkeypatch.setattr(folder, "census", lambda job: {})
    monkeypatch.setattr(to_onnx, "trace", trace)
    copy = shutil.copytree(embedded / "tiny-koala-700m", tmp_path / "mine")
    damaged(copy, "unet", "conv_in.bias", 1e6)
    with pytest.raises(UserError, match="conv_in.bias of the unet is beyond float16's largest .*: --dtype fp32$"):
        export(plan(str(copy)), tmp_path / "out")
    with pytest.raises(Traced):
        export(plan(str(copy), dtype="fp32"), tmp_path / "out")
    lora = tmp_path / "lora.safetensors"
    save_file(kohya(factors(TINY_SDXL, ATTENTION)), lora)
    with pytest.raises(UserError, match="beyond float16's .*, or lower --lora-strength, now 1e[+]20$"):
        export(plan("tiny-koala-700m", lora=Lora(file=lora, strength=1e20)), tmp_path / "out")
    with pytest.raises(Traced):
        export(plan("tiny-koala-700m", lora=Lora(file=lora)), tmp_path / "out")


@pytest.mark.parametrize("progress", ["text", "json"])
def test_what_a_lora_reaches_and_what_of_it_is_not_used_is_told(tmp_path, monkeypatch, capsys, progress):
    """Symptom: an export took the text encoders' half of a LoRA for nothing without a word."""
    lora = tmp_path / "detail.safetensors"
    layers = factors(TINY_SDXL, ATTENTION)
    text = {f"lora_te1_text_model_encoder_layers_0_mlp_fc1.{end}": torch.ones(()) for end in ("alpha", "x", "y")}
    save_file(kohya(layers) | text | {"bundle_emb.cat.clip_g": torch.ones(2, 4)}, lora)
    stopped = UserError("far enough")
    monkeypatch.setattr("koala.export.writing.export", lambda *_, **__: (_ for _ in ()).throw(stopped))
    args = ["--model", "tiny-koala-700m", "--lora", str(lora), "--out", str(tmp_path / "out"), "--progress", progress]
    with pytest.raises(UserError, match="far enough"):
        command.run(parse(args))
    line = capsys.readouterr().err.splitlines()[0]
    line = json.loads(line)["text"] if progress == "json" else line
    # The paper's cut: no middle, of each stage the first residual block (in the decoder the last as well), 5 deep.
    gone = re.compile(r"mid_block|down_blocks\.\d\.attentions\.1|up_blocks\.\d\.attentions\.1|transformer_blocks\.5")
    count, here = len(layers), sum(not gone.search(path) for path in layers)
    assert line == (
        f"LoRA detail.safetensors on {here} of its {count} U-Net layers ({here / count:.0%}), "
        "3 text-encoder tensors not used, 1 other tensor skipped"
    )
    assert 0 < here < count
