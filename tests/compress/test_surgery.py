"""The cut: every student tensor is the teacher's own, in memory and from files to files, at any size."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from torch import nn

from koala.compress.surgery import compress, cut
from koala.errors import UserError
from koala.files.tensorfiles import stored_tensors
from koala.models.cards import CARDS
from koala.models.registry import find
from koala.unet.layer_map import layer_map, renamed
from koala.unet.specs import KOALA_700M, SDXL, TINY_KOALA_1B, TINY_KOALA_700M, TINY_SDXL
from tests import forked

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    return UNet2DConditionModel(**TINY_SDXL.config()).eval()


def cut_by_hand(unet: UNet2DConditionModel, depth: int, mid: bool) -> UNet2DConditionModel:
    """The paper's two operations on the teacher's own modules: take blocks out, then shorten the transformers."""
    stages = [(b, [0]) for b in unet.down_blocks] + [(b, [0, 2]) for b in unet.up_blocks]
    for block, kept in stages:
        block.resnets = nn.ModuleList(block.resnets[k] for k in kept)
        if hasattr(block, "attentions"):
            block.attentions = nn.ModuleList(block.attentions[k] for k in kept)
    if not mid:
        unet.mid_block = None
    for module in unet.modules():
        if hasattr(module, "transformer_blocks"):
            module.transformer_blocks = module.transformer_blocks[:depth]
    return unet


def predict(unet: UNet2DConditionModel) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    sample, text, pooled = (torch.randn(s, generator=generator) for s in ((2, 4, 32, 32), (2, 77, 96), (2, 64)))
    added = {"text_embeds": pooled, "time_ids": torch.tensor([[256.0, 256, 0, 0, 256, 256]] * 2)}
    with torch.no_grad():
        return unet(sample, torch.tensor([500, 20]), text, added_cond_kwargs=added).sample


@pytest.mark.parametrize(
    ("spec", "depth", "mid"), [(TINY_KOALA_1B, 6, True), (TINY_KOALA_700M, 5, False)], ids=["koala-1b", "koala-700m"]
)
def test_student_predicts_what_a_teacher_cut_by_hand_predicts(teacher, spec, depth, mid):
    student = cut(teacher.state_dict(), spec, TINY_SDXL).eval()
    by_hand = UNet2DConditionModel(**TINY_SDXL.config()).eval()
    by_hand.load_state_dict(teacher.state_dict())
    difference = (predict(student) - predict(cut_by_hand(by_hand, depth, mid))).abs()
    print(f"{spec.name}: max difference {difference.max():.2e}, mean {difference.mean():.2e}")
    assert difference.max() <= 1e-6
    assert (predict(student) - predict(teacher)).abs().max() > 1e-3, "the test would pass for an uncut teacher"


@pytest.mark.parametrize("spec", [TINY_KOALA_1B, TINY_KOALA_700M], ids=lambda s: s.name)
def test_student_tensors_are_the_teachers_own(teacher, spec, tmp_path):
    theirs = teacher.state_dict()
    student = cut(theirs, spec, TINY_SDXL)
    weights = student.state_dict()
    assert torch.equal(weights["up_blocks.0.resnets.1.conv1.weight"], theirs["up_blocks.0.resnets.2.conv1.weight"])
    pool = {t.data_ptr() for t in theirs.values()}
    assert not pool & {t.data_ptr() for t in weights.values()}, "the student must not share memory with its teacher"
    student.save_pretrained(tmp_path)
    again = UNet2DConditionModel.from_pretrained(tmp_path).state_dict()
    assert again.keys() == weights.keys()
    assert all(torch.equal(again[k], weights[k]) for k in weights)


def test_a_teacher_with_a_missing_tensor_is_refused_by_its_name(teacher):
    broken = {k: v for k, v in teacher.state_dict().items() if k != "conv_in.weight"}
    with pytest.raises(UserError, match=r"1 tensors of tiny-koala-700m have no source in tiny-sdxl: conv_in.weight"):
        cut(broken, TINY_KOALA_700M, TINY_SDXL)


def test_a_tensor_of_another_shape_is_no_source(teacher):
    broken = teacher.state_dict() | {"conv_in.bias": torch.zeros(7)}
    with pytest.raises(UserError, match="no source in tiny-sdxl: conv_in.bias"):
        cut(broken, TINY_KOALA_700M, TINY_SDXL)


def test_compress_gives_bit_for_bit_the_tensors_that_the_rule_names(tmp_path, embedded):
    report = compress("tiny-sdxl", "koala-700m", tmp_path / "student")
    teacher_tensors = load_file(embedded / "tiny-sdxl" / "unet" / WEIGHTS)
    student_tensors = load_file(tmp_path / "student" / "unet" / WEIGHTS)
    table = layer_map(TINY_KOALA_700M, TINY_SDXL)
    sources = {key: renamed(key, table) for key in student_tensors}
    assert all(
        student_tensors[k].dtype == teacher_tensors[s].dtype and torch.equal(student_tensors[k], teacher_tensors[s])
        for k, s in sources.items()
    )
    moved = {k.split(".resnets")[0].split(".attentions")[0] for k, s in sources.items() if k != s}
    assert moved == {"up_blocks.0", "up_blocks.1", "up_blocks.2"}
    assert all(s.split(".")[3] == "2" and k.split(".")[3] == "1" for k, s in sources.items() if k != s)
    assert (report.copied.tensors, report.copied.parameters, report.copied.bytes) == (584, 1_967_636, 3_935_272)
    assert report.copied.parameters + report.dropped.parameters == 6_442_948
    assert report.copied.tensors + report.dropped.tensors == len(teacher_tensors)
    assert (report.renumbered, report.new, report.dtypes) == (188, 0, ("F16",))


def test_a_compressed_pipeline_runs_in_plain_diffusers(tmp_path, embedded):
    out = tmp_path / "student"
    report = compress("tiny-sdxl", "koala-1b", out)
    files = {f.relative_to(out).as_posix() for f in out.rglob("*") if f.is_file()}
    original = embedded / "tiny-sdxl"
    assert files - {"surgery.json"} == {f.relative_to(original).as_posix() for f in original.rglob("*") if f.is_file()}
    unchanged = [f for f in files if not f.startswith("unet/") and f != "surgery.json"]
    assert all((out / f).read_bytes() == (original / f).read_bytes() for f in unchanged)
    assert json.loads((out / "surgery.json").read_text()) == json.loads(json.dumps(asdict(report)))
    assert (report.teacher, report.revision, report.student_spec) == ("tiny-sdxl", "local", "tiny-koala-1b")
    assert find(str(out)).guidance == CARDS["tiny-sdxl"].guidance  # koala runs it as its teacher
    pipeline = StableDiffusionXLPipeline.from_pretrained(out)
    assert sum(p.numel() for p in pipeline.unet.parameters()) == report.copied.parameters == 2_916_564
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a red circle", num_inference_steps=1, height=64, width=64, output_type="np").images[0]
    assert picture.shape == (64, 64, 3)


def cached(folder: Path, repo: str, source: Path, commit: str) -> Path:
    """A model in the hub's cache, half-precision files only, as a download leaves it."""
    model = folder / f"models--{repo.replace('/', '--')}"
    shutil.copytree(source, model / "snapshots" / commit)
    for file in list((model / "snapshots" / commit).rglob("*.safetensors")):
        file.rename(file.with_suffix(".fp16.safetensors"))
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(commit)
    return model / "snapshots" / commit


@pytest.mark.slow
def test_a_hub_model_in_half_precision_with_its_better_vae_becomes_a_plain_pipeline(tmp_path, embedded):
    """sdxl-base in the cache, with the embedded teacher's files in it: fp16 variants, and a VAE from elsewhere."""
    base, commits = tmp_path / "hub", ("a" * 40, "b" * 40)
    cached(base, "stabilityai/stable-diffusion-xl-base-1.0", embedded / "tiny-sdxl", commits[0])
    snapshot = base / "models--stabilityai--stable-diffusion-xl-base-1.0" / "snapshots" / commits[0]
    for part in (
        "text_encoder",
        "text_encoder_2",
    ):  # as the hub's say, which plain diffusers cannot run together with float32
        config = json.loads((snapshot / part / "config.json").read_text())
        del config["dtype"]
        (snapshot / part / "config.json").write_text(json.dumps(config | {"torch_dtype": "float16"}))
    vae = cached(base, "madebyollin/sdxl-vae-fp16-fix", embedded / "tiny-sdxl" / "vae", commits[1])
    (vae / "config.json").write_text((vae / "config.json").read_text() + " ")
    out = tmp_path / "student"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "koala",
            "compress",
            "--teacher",
            "sdxl-base",
            "--spec",
            "koala-1b",
            "--out",
            out,
            "--json",
        ],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        env=os.environ | {"HF_HUB_CACHE": str(base)},
    )
    assert done.returncode == 0, done.stderr
    assert all(commit in json.loads(done.stdout)["revision"] for commit in commits)
    assert (out / "vae" / "config.json").read_bytes() == (vae / "config.json").read_bytes()
    assert not list(out.rglob("*fp16*"))
    for part, stem in (("vae", "diffusion_pytorch_model"), ("text_encoder", "model"), ("text_encoder_2", "model")):
        name = f"{part}/{stem}.safetensors"
        assert (out / name).read_bytes() == (embedded / "tiny-sdxl" / name).read_bytes()
    pipeline = StableDiffusionXLPipeline.from_pretrained(out)
    assert sum(p.numel() for p in pipeline.unet.parameters()) == 2_916_564
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline("a red circle", num_inference_steps=1, height=64, width=64).images[0].size == (64, 64)


def test_what_the_spec_does_not_say_stays_as_in_the_teachers_config(tmp_path):
    teacher = UNet2DConditionModel(**TINY_SDXL.config() | {"sample_size": [64, 32], "upcast_attention": True})
    teacher.save_pretrained(tmp_path / "teacher")
    compress(str(tmp_path / "teacher"), "koala-700m", tmp_path / "student")
    student = UNet2DConditionModel.from_pretrained(tmp_path / "student")
    assert (student.config.sample_size, student.config.upcast_attention) == ([64, 32], True)


def test_any_depths_and_a_student_as_teacher(tmp_path):
    compress("tiny-sdxl", "0+0,2+1,4+3/0/4+3+10,2+1+1,0+0+0", tmp_path / "uneven")
    compress(str(tmp_path / "uneven"), "0,1,3/-/2+9,2+1,0+0", tmp_path / "small")
    uneven_tensors, small_tensors = (load_file(tmp_path / n / "unet" / WEIGHTS) for n in ("uneven", "small"))
    key = "up_blocks.0.attentions.{}.transformer_blocks.8.attn1.to_q.weight"
    assert torch.equal(small_tensors[key.format(1)], uneven_tensors[key.format(2)])
    assert UNet2DConditionModel.from_pretrained(tmp_path / "small" / "unet").config["mid_block_type"] is None


def test_the_report_says_per_stage_what_was_kept(tmp_path):
    lines = compress("tiny-sdxl", "koala-700m", tmp_path / "student").lines()
    assert lines[0] == "DW-1  residual blocks kept: 1 of 2, parameters: 8,064 of 13,808"
    assert "MID  removed, 1,036,032 parameters" in lines
    assert any(
        line.startswith("UP-1  residual blocks kept: 1, 3 of 3, transformer blocks: 5+5 of 10+10+10") for line in lines
    )
    assert lines[-1] == "tiny-koala-700m: 1,967,636 of 6,442,948 parameters (30.5%), 4 of 13 MB"


@pytest.mark.parametrize(
    ("teacher", "spec", "says"),
    [
        ("tiny-koala-700m", "koala-1b", "DW-3: tiny-koala-1b has 6 transformer blocks, tiny-koala-700m only 5"),
        ("tiny-koala-700m", "sdxl", "DW-1: tiny-sdxl has 2 residual blocks, tiny-koala-700m only 1"),
        ("tiny-koala-700m", "0,2,5/5/5+5,2+2,0+0", "has a stage MID that its teacher tiny-koala-700m lacks"),
        ("tiny-sdxl", "koala-2b", "'koala-2b' is not a spec; give a name"),
    ],
)
def test_a_spec_that_is_no_part_of_its_teacher_is_refused(tmp_path, teacher, spec, says):
    with pytest.raises(UserError, match=says):
        compress(teacher, spec, tmp_path / "student")
    assert not list(tmp_path.iterdir())


def test_a_teacher_file_that_lacks_a_tensor_is_refused_and_nothing_is_written(tmp_path, embedded):
    weights = load_file(embedded / "tiny-sdxl" / "unet" / WEIGHTS)
    del weights["up_blocks.0.resnets.2.conv1.weight"]
    save_file(weights, tmp_path / "broken.safetensors")
    with pytest.raises(
        UserError,
        match="broken.safetensors lacks one tensor, up_blocks.0.resnets.2.conv1.weight; copy or download the file",
    ):
        compress(str(tmp_path / "broken.safetensors"), "koala-700m", tmp_path / "student")
    assert [p.name for p in tmp_path.iterdir()] == ["broken.safetensors"]


@pytest.mark.parametrize(
    ("part", "value"), [("unet", math.nan), ("unet", -math.inf), ("vae", math.inf), ("text_encoder_2", math.nan)]
)
def test_a_weight_that_is_no_number_is_refused_by_its_name_and_nothing_is_left(tmp_path, embedded, part, value):
    """Symptom: a student that draws nothing, of a damaged teacher, without a word."""
    copy = shutil.copytree(embedded / "tiny-sdxl", tmp_path / "teacher")
    file = next((copy / part).glob("*.safetensors"))
    weights = load_file(file)
    name = sorted(name for name, weight in weights.items() if "down_blocks.1" not in name)[-1]
    weights[name].view(-1)[-1] = value
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=f"{file} is damaged: its weight {name} holds NaN or infinity; copy or down"):
        compress(str(copy), "koala-700m", tmp_path / "new" / "student")
    assert not list((tmp_path / "new").rglob("*"))


def compress_on_a_full_disk(student: str) -> None:
    import resource

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))  # as a disk that fills while we write
    try:
        compress("tiny-sdxl", "koala-700m", Path(student))
    except OSError as error:
        print("stopped:", error)


@pytest.mark.skipif(sys.platform == "win32", reason="has no limit on a file's size to set")
def test_a_disk_that_fills_midway_leaves_nothing(tmp_path):
    message = tmp_path / "said.txt"
    assert forked.end_of(forked.start(message, compress_on_a_full_disk, str(tmp_path / "student"))) == 0
    assert "stopped: [Errno" in message.read_text()
    assert list(tmp_path.iterdir()) == [message]


MEASURED = """
import json, sys
from pathlib import Path
from koala.compress.surgery import compress

def memory(field):
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) * 1024

before = memory("VmRSS")
report = compress(sys.argv[1], "koala-700m", Path(sys.argv[2]))
print(json.dumps({"peak": memory("VmHWM") - before, "parameters": report.copied.parameters,
                  "bytes": report.copied.bytes, "interpreter": before}))
"""


def write_random_sdxl(folder: Path) -> None:
    """A full-size SDXL U-Net as the hub has it: fp16 variant, 5.1 GB, every tensor's bytes its own."""
    with torch.device("meta"):
        unet = UNet2DConditionModel(**SDXL.config())
    unet.save_config(folder)
    header, offset = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in sorted(unet.state_dict().items()):
        size = 2 * tensor.numel()
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [offset, offset + size]}
        offset += size
    encoded = json.dumps(header).encode()
    largest = max(math.prod(h["shape"]) * 2 for h in header.values() if "shape" in h)
    noise = (np.frombuffer(os.urandom(largest + 64 * len(header)), "<u2") & 0xBFFF).tobytes()  # no NaN, no infinity
    with open(folder / "diffusion_pytorch_model.fp16.safetensors", "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        for number, entry in enumerate(e for name, e in header.items() if name != "__metadata__"):
            start, end = entry["data_offsets"]
            file.write(memoryview(noise)[64 * number : 64 * number + end - start])


def contents(tensor):
    with open(tensor.file, "rb") as file:
        file.seek(tensor.start)
        return tensor.dtype, tensor.shape, file.read(tensor.size)


@pytest.fixture
def seven_gigabytes(tmp_path):
    """A folder that is emptied after the test: pytest keeps the usual one."""
    yield tmp_path
    for folder in tmp_path.iterdir():
        shutil.rmtree(folder)


@pytest.mark.slow  # two minutes, 7 GB of disk, 2 GB of memory at the end
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory as Linux tells it")
def test_full_size_sdxl_becomes_koala_700m_in_little_memory(seven_gigabytes):
    teacher, student = seven_gigabytes / "unet", seven_gigabytes / "student"
    teacher.mkdir()
    write_random_sdxl(teacher)
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, teacher, student],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    print(f"peak beyond the interpreter: {result['peak'] / 1e6:.0f} MB; {result}")
    assert result["peak"] < 0.5e9
    assert (result["parameters"], result["bytes"]) == (782_822_724, 2 * 782_822_724)
    teacher_tensors = stored_tensors(teacher / "diffusion_pytorch_model.fp16.safetensors")
    student_tensors = stored_tensors(student / WEIGHTS)
    table = layer_map(KOALA_700M, SDXL)
    assert all(
        contents(tensor) == contents(teacher_tensors[renamed(key, table)]) for key, tensor in student_tensors.items()
    )
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(UNet2DConditionModel.load_config(student))
    assert {k: tuple(t.shape) for k, t in unet.state_dict().items()} == {k: t.shape for k, t in student_tensors.items()}
    again = UNet2DConditionModel.from_pretrained(student, torch_dtype=torch.float16)
    key = "up_blocks.0.attentions.1.transformer_blocks.4.attn2.to_out.0.bias"
    assert again.get_parameter(key).detach().numpy().tobytes() == contents(student_tensors[key])[2]
