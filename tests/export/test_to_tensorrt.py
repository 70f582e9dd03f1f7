"""The lines for TensorRT say what was asked, a real engine is built without a GPU, and bad use leaves nothing."""

import dataclasses
import importlib.util
import json
import os
import shlex
import shutil
from pathlib import Path

import onnx
import onnxruntime
import pytest

from koala.errors import UserError
from koala.export import engines
from koala.export.command import main
from koala.export.engines import BUILDERS, KINDS
from koala.export.quantise import DYNAMIC
from koala.export.to_tensorrt import JSON_FILE, MARKDOWN_FILE, recipe
from koala.files.hashing import digest
from koala.models.export_manifest import UNET, Exported

INSTALL_RTX = "pip install -r requirements-dev.txt"


@pytest.fixture
def export(exported_700m, tmp_path) -> Path:
    """An export of tiny-koala-700m that a test may change."""
    return shutil.copytree(exported_700m, tmp_path / "export")


@pytest.fixture
def rtx():
    """TensorRT-RTX, which builds without a GPU; without it a test is skipped, and under CI=true it fails."""
    if importlib.util.find_spec("tensorrt_rtx") is None:
        message = f"TensorRT-RTX is not installed: {INSTALL_RTX}"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return next(builder for builder in BUILDERS if builder.module == "tensorrt_rtx")


def spelled(line: list[str], option: str) -> dict[str, list[int]]:
    """The shapes that a line of trtexec gives for an option."""
    text = next(word.partition("=")[2] for word in line if word.startswith(f"--{option}="))
    return {name: list(map(int, dims.split("x"))) for name, dims in (part.split(":") for part in text.split(","))}


def test_the_profile_covers_the_sizes_batches_and_tokens_that_were_asked(exported_700m):
    plan = recipe(exported_700m, sides=(128, 256, 512), batch=(2, 2, 8), tokens=(77, 154, 231))
    assert plan.profile == {
        "sample": {"min": (2, 4, 16, 16), "opt": (2, 4, 32, 32), "max": (8, 4, 64, 64)},
        "encoder_hidden_states": {"min": (2, 77, 96), "opt": (2, 154, 96), "max": (8, 231, 96)},
        "text_embeds": {"min": (2, 64), "opt": (2, 64), "max": (8, 64)},
        "time_ids": {"min": (2, 6), "opt": (2, 6), "max": (8, 6)},
    }


def test_the_profile_names_every_input_of_the_file_that_has_a_free_dimension(exported_700m):
    graph = onnx.load(exported_700m / UNET, load_external_data=False).graph
    free = {i.name for i in graph.input if any(d.dim_param for d in i.type.tensor_type.shape.dim)}
    assert recipe(exported_700m).profile.keys() == free


def test_every_program_is_given_the_same_shapes(exported_700m):
    plan = recipe(exported_700m, sides=(64, 256, 320))
    ten, eleven = plan.lines["trtexec of TensorRT 10"], plan.lines["trtexec of TensorRT 11"]
    assert [word for word in ten if word not in eleven] == ["--stronglyTyped"]
    assert not any("fp16" in word for line in plan.lines.values() for word in line)  # TensorRT 11 has no such switch
    polygraphy = plan.lines["polygraphy"]
    for kind in KINDS:
        wanted = {name: list(each[kind]) for name, each in plan.profile.items()}
        assert spelled(ten, f"{kind}Shapes") == wanted
        first = polygraphy.index(f"--trt-{kind}-shapes") + 1
        words = dict(word.split(":") for word in polygraphy[first : first + len(wanted)])
        assert {name: json.loads(dims) for name, dims in words.items()} == wanted
        for provider, option in (("Tensorrt", "trt"), ("NvTensorRTRTX", "nv")):
            options = plan.onnxruntime[f"{provider}ExecutionProvider"]
            assert spelled([f"--x={options[f'{option}_profile_{kind}_shapes']}"], "x") == wanted


def test_onnxruntime_knows_every_option_for_tensorrt(exported_700m):
    library = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    if not library.is_file():
        pytest.skip("this onnxruntime was built without TensorRT; onnxruntime-gpu has it")
    known = library.read_bytes()
    options = recipe(exported_700m).onnxruntime["TensorrtExecutionProvider"]
    assert [option for option in options if option.encode() not in known] == []


def test_the_files_name_no_path_of_this_machine_and_their_lines_can_be_pasted(export, capsys):
    assert main(["tensorrt", str(export), "--json"]) == 0
    printed, text = json.loads(capsys.readouterr().out), (export / MARKDOWN_FILE).read_text()
    assert printed == json.loads((export / JSON_FILE).read_text())
    assert printed["onnx_sha256"] == digest(export / UNET)
    assert str(export) not in text + (export / JSON_FILE).read_text()
    for words in printed["lines"].values():
        assert shlex.join(words) in text
        assert shlex.split(shlex.join(words)) == words
    Exported.read(export).check(export)  # it is still the export that it was


@pytest.mark.slow
def test_tensorrt_rtx_builds_the_unet_without_a_gpu(rtx, export, capsys):
    assert main(["tensorrt", str(export), "--build", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    built = next(engine for engine in printed["engines"] if engine["builder"] == "TensorRT-RTX")
    weights = 2 * Exported.read(export).components["unet"].parameters
    assert built["bytes"] == (export / built["file"]).stat().st_size > weights
    assert built["sha256"] == digest(export / built["file"])
    assert f"TensorRT-RTX {built['version']}: {built['file']}" in (export / MARKDOWN_FILE).read_text()


def test_tensorrt_rtx_refuses_a_file_of_mixed_types_in_its_own_words(rtx, export):
    """The naive export's fault: fp16 and fp32 joined in the text-time embedding, which ONNX's checker overlooks."""
    model = onnx.load(export / UNET)
    concat = onnx.helper.make_node("Concat", ["text_embeds", "time_ids"], ["mixed"], axis=1)
    model.graph.node.append(concat)
    onnx.save(model, export / UNET)
    with pytest.raises(UserError, match="TensorRT-RTX cannot read .*Concat"):
        engines.build(export, UNET, {}, rtx)
    assert not (export / rtx.engine).exists()


def rewrite(folder: Path, **values) -> None:
    dataclasses.replace(Exported.read(folder), **values).write(folder)


BAD = {
    "no export": (lambda folder: (folder / "export.json").unlink(), [], "is not an export"),
    "integers": (lambda folder: rewrite(folder, dtype=DYNAMIC), [], "TensorRT has neither"),
    "edited": (lambda folder: (folder / UNET).write_bytes(b"x"), [], "was changed after the export"),
    "missing": (lambda folder: (folder / UNET).unlink(), [], f"{UNET} is missing"),
    "odd size": (None, ["--opt", "260"], "must be a multiple of 8"),
    "no size": (None, ["--min", "0"], "must be a multiple of 8 from 64"),
    "min above max": (None, ["--min", "512", "--opt", "256"], "from the smallest"),
    "no batch": (None, ["--batch", "0", "2", "4"], "at least 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_use_is_one_line_and_exit_2_and_writes_nothing(case, export, capsys):
    damage, options, says = BAD[case]
    if damage:
        damage(export)
    before = sorted(export.rglob("*"))
    assert main(["tensorrt", str(export), *options]) == 2
    captured = capsys.readouterr()
    assert says in captured.err
    assert captured.err.count("\n") == 1
    assert captured.out == ""
    assert sorted(export.rglob("*")) == before


def test_without_a_builder_the_remedy_is_named_before_anything_is_written(export, capsys, monkeypatch):
    monkeypatch.setattr(engines, "BUILDERS", ())
    assert main(["tensorrt", str(export), "--build"]) == 2
    assert "pip install tensorrt-rtx" in capsys.readouterr().err
    assert not (export / MARKDOWN_FILE).exists()


def test_a_full_disk_is_told_before_the_engine_is_built(rtx, export, capsys, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**9, 10**9, 10**6))
    assert main(["tensorrt", str(export), "--build"]) == 2
    assert "make room" in capsys.readouterr().err
    assert not (export / MARKDOWN_FILE).exists()
