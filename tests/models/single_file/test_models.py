"""A single file is a model like its folder: the same picture without options, whatever wrote it and what it lacks."""

import json
import logging
import re
import shutil
from functools import lru_cache
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from koala.cli.main import main
from koala.convert.to_single_file import write_single_file
from koala.errors import UserError
from koala.export.folder import plan, source_hashes
from koala.models.cards import CARDS
from koala.models.checkpoints import open_unet
from koala.models.from_torch import load_part, load_unet
from koala.models.layout import STEMS
from koala.models.library import Library
from koala.models.locate import locate
from koala.models.registry import find
from koala.models.single_file.reading import read_single_file, spec_of
from koala.request import GenerationRequest
from koala.sampling.generate import generate
from koala.sampling.resolve import resolve
from koala.unet.costs import parameters
from koala.unet.specs import SPECS, TINY_KOALA_700M, TINY_SDXL, student

UNET, TEXT, TEXT_2, VAE = (
    "model.diffusion_model.",
    "conditioner.embedders.0.transformer.text_model.",
    "conditioner.embedders.1.model.",
    "first_stage_model.",
)
MIDDLE = f"{UNET}middle_block.0."
EMBEDDED = [card.name for card in CARDS.values() if card.embedded]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Name of an embedded model -> its single file."""
    folder = tmp_path_factory.mktemp("files")
    for name in EMBEDDED:
        write_single_file(name, folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in EMBEDDED}


def rewritten(file: Path, out: Path, change, **metadata: str) -> Path:
    """A copy of a file with other tensors, and with other metadata where some is given."""
    with safe_open(file, "pt") as opened:
        words = opened.metadata()
    save_file(change(load_file(file)), out, metadata=metadata or words)
    return out


@lru_cache(maxsize=1)
def library() -> Library:
    return Library("cpu")


def picture(model: str, **settings):
    asked = GenerationRequest(model=model, prompt="a red circle left of a blue square", **settings)
    return generate(asked, library().get(model)).images[0]


@pytest.mark.parametrize("name", EMBEDDED)
def test_a_file_is_drawn_as_its_folder_is(files, name):
    one, other = (resolve(GenerationRequest(model=str(m), prompt="x"), find(str(m))) for m in (files[name], name))
    for setting in ("steps", "guidance", "scheduler", "width", "height", "preset"):
        assert getattr(one, setting) == getattr(other, setting)
    assert find(str(files[name])).noising == find(name).noising
    assert find(str(files[name])).parameters == find(name).parameters
    assert find(str(files[name])).title == f"{find(name).title} ({name}.safetensors)"  # told apart in a list


def test_a_file_draws_its_folders_picture_without_options(files):
    drawn, expected = picture(str(files["tiny-koala-700m"])), picture("tiny-koala-700m")
    assert drawn.tobytes() == expected.tobytes()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny-sdxl", "tiny-koala-1b"])
def test_the_others_draw_the_same_with_two_steps(files, name):
    assert picture(str(files[name]), steps=2).tobytes() == picture(name, steps=2).tobytes()


def test_each_part_is_what_diffusers_reads_from_the_file(files, embedded):
    """diffusers' own converters are the oracle of ours, and our folder is only its config."""
    name = "tiny-koala-700m"
    theirs = StableDiffusionXLPipeline.from_single_file(
        str(files[name]), config=str(embedded / name), local_files_only=True, torch_dtype=torch.float32
    )
    location = locate(find(str(files[name])))
    for part in STEMS:
        own = load_unet(location, torch.float32) if part == "unet" else load_part(part, location, torch.float32)
        expected = getattr(theirs, part).state_dict()
        assert own.state_dict().keys() == expected.keys()
        assert all(torch.equal(own.state_dict()[key], expected[key]) for key in expected), part


@pytest.fixture
def velocity(tmp_path, embedded) -> Path:
    """A folder of a v-prediction model with a schedule up to pure noise."""
    folder = shutil.copytree(embedded / "tiny-koala-700m", tmp_path / "velocity")
    file = folder / "scheduler" / "scheduler_config.json"
    output = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    file.write_text(json.dumps(json.loads(file.read_text()) | output))
    return folder


def test_a_v_prediction_file_is_marked_and_draws_its_folders_picture(velocity, files, tmp_path):
    file = tmp_path / "v.safetensors"
    write_single_file(str(velocity), file)
    with safe_open(file, "pt") as opened:
        assert {"v_pred", "ztsnr"} <= set(opened.keys())  # ComfyUI's and Forge's markers
        assert opened.metadata()["modelspec.prediction_type"] == "v"
    drawn, expected = picture(str(file), steps=3), picture(str(velocity), steps=3)
    assert drawn.tobytes() == expected.tobytes()
    assert drawn.tobytes() != picture(str(files["tiny-koala-700m"]), steps=3).tobytes()


@pytest.mark.parametrize("words", [{}, {"modelspec.prediction_type": "v"}])
def test_another_programs_v_prediction_file_is_honoured(words, velocity, files, tmp_path):
    """Its header says nothing of ours: the markers alone do, or the standard's word."""
    markers = {} if words else {"v_pred": torch.zeros(0), "ztsnr": torch.zeros(0)}
    file = rewritten(
        files["tiny-koala-700m"], tmp_path / "v.safetensors", lambda t: t | markers, **{"format": "pt"} | words
    )
    scheduler = json.loads(locate(find(str(file))).configs["scheduler/scheduler_config.json"].read_text())
    assert scheduler["prediction_type"] == "v_prediction"
    assert scheduler["rescale_betas_zero_snr"] is (not words)


def test_a_file_that_contradicts_itself_is_refused(velocity, tmp_path):
    write_single_file(str(velocity), tmp_path / "v.safetensors")
    file = rewritten(
        tmp_path / "v.safetensors", tmp_path / "e.safetensors", lambda t: {k: v for k, v in t.items() if k != "v_pred"}
    )
    assert find(str(file))  # without its marker two of three still agree
    with safe_open(file, "pt") as opened:
        words = opened.metadata() | {"modelspec.prediction_type": "epsilon"}
    contradicting = rewritten(file, tmp_path / "f.safetensors", lambda t: t, **words)
    with pytest.raises(UserError, match="contradicts itself in what its U-Net predicts"):
        find(str(contradicting))


# parts


def test_a_file_without_encoders_and_vae_takes_them_from_its_teacher_and_says_so(files, tmp_path, caplog):
    file = rewritten(
        files["tiny-koala-700m"],
        tmp_path / "unet.safetensors",
        lambda tensors: {k: v for k, v in tensors.items() if k.startswith(UNET)},
    )
    expected = picture("tiny-koala-700m", steps=2)
    assert picture(str(file), steps=2).tobytes() == expected.tobytes()
    assert "has no vae and no text_encoder and no text_encoder_2 of its own; taken from tiny-koala-700m" in caplog.text
    assert locate(find(str(file))).revision == "local, " + ", ".join(
        f"{part} of Tiny KOALA-700M" for part in ("vae", "text_encoder", "text_encoder_2")
    )


def test_a_unet_in_diffusers_own_names_runs_too(embedded):
    file = embedded / "tiny-koala-700m" / "unet" / f"{STEMS['unet']}.safetensors"
    assert picture(str(file), steps=2).tobytes() == picture("tiny-koala-700m", steps=2).tobytes()


def test_half_a_vae_is_refused_by_what_it_lacks(files, tmp_path):
    cut = f"{VAE}decoder.conv_out."
    file = rewritten(
        files["tiny-koala-700m"],
        tmp_path / "cut.safetensors",
        lambda tensors: {k: v for k, v in tensors.items() if not k.startswith(cut)},
    )
    with pytest.raises(UserError, match=f"{file} lacks 2 tensors, for example decoder.conv_out.weight"):
        Library("cpu").get(str(file))


def test_what_other_programs_leave_in_a_file_is_ignored_or_told(files, tmp_path, caplog):
    def with_extras(tensors):
        projection = tensors.pop(f"{TEXT_2}text_projection")
        result = tensors | {f"{TEXT_2}text_projection.weight": projection.T.contiguous()}  # as transformers has it
        usual = {f"{TEXT_2}logit_scale": torch.zeros(()), f"{TEXT}embeddings.position_ids": torch.arange(77)[None]}
        return result | usual | {"model_ema.decay": torch.zeros(()), "model_ema.num_updates": torch.zeros(())}

    file = rewritten(files["tiny-koala-700m"], tmp_path / "other.safetensors", with_extras)
    assert picture(str(file), steps=2).tobytes() == picture("tiny-koala-700m", steps=2).tobytes()
    assert "model_ema.decay and 1 more tensors belong to no part of SDXL and are left out" in caplog.text
    assert "logit_scale" not in caplog.text and "position_ids" not in caplog.text


def test_a_file_that_a_compiler_wrapped_is_the_same(files, tmp_path):
    def wrapped(tensors):
        return {k.replace(UNET, f"{UNET}_orig_mod.") if k.startswith(UNET) else k: v for k, v in tensors.items()}

    file = rewritten(files["tiny-koala-700m"], tmp_path / "wrapped.safetensors", wrapped)
    assert read_single_file(file).spec == TINY_KOALA_700M
    assert open_unet(str(file)).tensors.keys() == open_unet("tiny-koala-700m").tensors.keys()


def test_a_damaged_header_and_a_setting_that_cannot_be_are_refused(files, tmp_path):
    for message, words in (("{", "is not JSON"), (json.dumps({"defaults": {"steps": -3}}), "defaults")):
        file = rewritten(files["tiny-koala-700m"], tmp_path / "bad.safetensors", lambda t: t, koala=message)
        with pytest.raises(UserError, match=words):
            find(str(file))


@pytest.mark.parametrize(("name", "says"), [("a.ckpt", "is a pickle"), ("a.safetensors", "there is no file")])
def test_what_is_no_file_of_weights_is_said(tmp_path, name, says):
    if name.endswith("ckpt"):
        (tmp_path / name).write_bytes(b"\x80\x04")
    with pytest.raises(UserError, match=says):
        find(str(tmp_path / name))


# a middle block that changes nothing


def test_the_identity_middle_block_changes_nothing_in_any_program(files):
    """The residual block of the original layout, written out: the last convolution's zeros leave the input."""
    tensors = {k.removeprefix(MIDDLE): v.float() for k, v in load_file(files["tiny-koala-700m"]).items() if MIDDLE in k}
    assert len(tensors) == 10
    generator = torch.Generator().manual_seed(0)
    x, time = torch.randn(2, 64, 8, 8, generator=generator), torch.randn(2, 64, generator=generator)
    hidden = F.silu(F.group_norm(x, 4, tensors["in_layers.0.weight"], tensors["in_layers.0.bias"]))
    hidden = F.conv2d(hidden, tensors["in_layers.2.weight"], tensors["in_layers.2.bias"], padding=1)
    hidden += F.linear(F.silu(time), tensors["emb_layers.1.weight"], tensors["emb_layers.1.bias"])[:, :, None, None]
    hidden = F.silu(F.group_norm(hidden, 4, tensors["out_layers.0.weight"], tensors["out_layers.0.bias"]))
    out = x + F.conv2d(hidden, tensors["out_layers.3.weight"], tensors["out_layers.3.bias"], padding=1)
    assert torch.equal(out, x)


def test_the_identity_is_dropped_and_not_counted(files):
    for name in EMBEDDED:
        with safe_open(files[name], "pt") as opened:
            has_middle = any(key.startswith(MIDDLE) for key in opened.keys())  # noqa: SIM118  (not a dict)
        assert has_middle  # a middle block of its own, or the identity
        assert read_single_file(files[name]).spec == CARDS[name].spec
        assert find(str(files[name])).parameters == parameters(CARDS[name].spec)
    assert not any(key.startswith("mid_block") for key in read_single_file(files["tiny-koala-700m"]).unet)


@pytest.mark.parametrize("sign", [0.0, -0.0])
def test_zeros_of_either_sign_are_the_identity(files, tmp_path, sign):
    def signed(tensors):
        return tensors | {f"{MIDDLE}out_layers.3.weight": torch.full((64, 64, 3, 3), sign).half()}

    file = rewritten(files["tiny-koala-700m"], tmp_path / "signed.safetensors", signed)
    assert read_single_file(file).spec == TINY_KOALA_700M


def test_a_middle_block_that_does_something_is_read_as_one_without_attention(files, tmp_path, caplog):
    def trained(tensors):
        return tensors | {f"{MIDDLE}out_layers.3.bias": torch.full((64,), 0.5).half()}

    file = rewritten(files["tiny-koala-700m"], tmp_path / "merged.safetensors", trained)
    assert read_single_file(file).spec == student("0,2,5/0/5+5,2+2,0+0", TINY_SDXL)
    assert "has the depths of tiny-koala-700m, but its middle block does something" in caplog.text
    with caplog.at_level(logging.ERROR):
        changed = picture(str(file), steps=2)
    assert changed.tobytes() != picture("tiny-koala-700m", steps=2).tobytes()


@pytest.mark.parametrize("spec", SPECS.values(), ids=str)
def test_the_spec_is_read_back_with_the_identity_in_the_file(spec):
    """Of every spec, as names and shapes; diffusers' own network is what has them."""
    with torch.device("meta"):
        shapes = {k: tuple(v.shape) for k, v in UNet2DConditionModel(**spec.config()).state_dict().items()}
    assert spec_of(shapes, "x").notation == spec.notation


# wherever a folder works


def test_compress_keeps_the_pipeline_of_a_whole_file(files, tmp_path):
    out = tmp_path / "student"
    assert main(["compress", "--teacher", str(files["tiny-sdxl"]), "--spec", "koala-700m", "--out", str(out)]) == 0
    reference = tmp_path / "reference"
    assert main(["compress", "--teacher", "tiny-sdxl", "--spec", "koala-700m", "--out", str(reference)]) == 0
    for part, stem in STEMS.items():
        tensors, expected = (load_file(folder / part / f"{stem}.safetensors") for folder in (out, reference))
        assert tensors.keys() == expected.keys() and all(torch.equal(tensors[k], expected[k]) for k in tensors), part
    StableDiffusionXLPipeline.from_pretrained(out)
    settings = ("scheduler", "steps", "guidance", "width", "height", "noising", "teacher")
    assert [getattr(find(str(out)), s) for s in settings] == [getattr(find(str(reference)), s) for s in settings]


def test_compare_attention_and_export_take_a_file(files, tmp_path, capsys):
    both = [str(files["tiny-koala-700m"]), "tiny-sdxl"]
    shared = ["--prompt", "a red circle", "--steps", "1", "--json"]
    assert main(["compare", "--models", *both, *shared, "--out", str(tmp_path / "compare")]) == 0
    capsys.readouterr()
    arguments = ["attention", "--model", both[0], *shared, "--stages", "UP-1", "--out", str(tmp_path / "maps")]
    assert main(arguments) == 0
    job = plan(both[0])
    assert job.spec == TINY_KOALA_700M
    assert set(source_hashes(job)) == {f"{part}/tiny-koala-700m.safetensors" for part in STEMS}


def test_a_picture_names_the_file_and_not_its_folder(files, tmp_path):
    asked = GenerationRequest(model=str(files["tiny-koala-700m"]), prompt="a red circle", steps=1)
    result = generate(asked, Library("cpu").get(asked.model))
    (saved,) = result.save(tmp_path / "a.png")
    assert str(files["tiny-koala-700m"].parent).encode() not in saved.read_bytes()
    assert b"tiny-koala-700m.safetensors" in saved.read_bytes()


# convert


def test_there_and_back_is_the_same_file_and_the_same_picture(files, tmp_path, capsys):
    file, folder, again = files["tiny-koala-700m"], tmp_path / "folder", tmp_path / "again.safetensors"
    assert main(["convert", str(file), "--out", str(folder), "--json"]) == 0
    output = json.loads(capsys.readouterr().out)
    assert (output["unet"], output["settings_from"], output["lent"]) == ("tiny-koala-700m", "tiny-koala-700m", [])
    assert picture(str(folder)).tobytes() == picture(str(file)).tobytes()
    assert main(["convert", str(folder), "--out", str(again)]) == 0
    assert find(str(again)).title == "folder (again.safetensors)"
    tensors, expected = load_file(again), load_file(file)
    assert tensors.keys() == expected.keys() and all(torch.equal(tensors[k], expected[k]) for k in tensors)
    StableDiffusionXLPipeline.from_pretrained(folder)
    assert str(tmp_path).encode() not in b"".join(f.read_bytes() for f in folder.rglob("*.json"))


def test_a_file_alone_becomes_a_whole_folder(files, tmp_path):
    file = rewritten(
        files["tiny-koala-700m"],
        tmp_path / "unet.safetensors",
        lambda tensors: {k: v for k, v in tensors.items() if k.startswith(UNET)},
    )
    assert main(["convert", str(file), "--out", str(tmp_path / "folder"), "--teacher", "tiny-sdxl"]) == 0
    assert picture(str(tmp_path / "folder"), steps=2).tobytes() == picture("tiny-koala-700m", steps=2).tobytes()


@pytest.mark.parametrize(
    ("model", "out", "says"),
    [
        ("tiny-sdxl", "folder", "tiny-sdxl is not one file; .*--out FILE.safetensors"),
        ("none.safetensors", "folder", "there is no file none.safetensors"),
        ("nobody", "a.safetensors", "unknown model 'nobody'"),
    ],
)
def test_what_cannot_be_converted_is_said(tmp_path, capsys, model, out, says):
    assert main(["convert", model, "--out", str(tmp_path / out)]) == 2
    output = capsys.readouterr().err
    assert re.search(says, output) and output.count("\n") == 1
    assert not (tmp_path / out).exists()
