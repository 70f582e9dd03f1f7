"""The estimate's moments against a step's live tensors, and its peak against that of a run in a process of its own."""

import gc
import json
import shutil
import subprocess
import sys
import weakref
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from koala.distill.config import DistillConfig
from koala.distill.data.encoded import Batch
from koala.distill.draws import Draws
from koala.distill.estimate.lora import lora_parameters
from koala.distill.estimate.memory import RunMemory
from koala.distill.loss.pairs import feature_pairs
from koala.distill.loss.phased import GuidanceStep, PhasedStep
from koala.distill.loss.step import DistillationStep
from koala.distill.loss.velocity import GuidedTeacher
from koala.distill.optimizers import build_optimizers
from koala.distill.preparation import Adapted
from koala.lora.training import attach
from koala.models.cards import EMBEDDED
from koala.unet.specs import KOALA_700M, SDXL, TINY_KOALA_700M, TINY_SDXL, UNetSpec

ROOT = Path(__file__).parents[2]
HALF = replace(TINY_SDXL, name="half", channels=(160, 320, 640), heads=(5, 10, 20))  # SDXL's U-Net, half as wide
MAKE_FULL_SIZE = """
import sys
from koala.models.random_weights import random_library
random_library("cpu", dtype="bfloat16").get("sdxl-base").pipeline.save_pretrained(sys.argv[1], max_shard_size="100GB")
"""


class Live(TorchDispatchMode):
    """Bytes of all tensors that are alive, and their peak since `peak` was last set to 0."""

    def __init__(self):
        super().__init__()
        self.bytes = self.peak = 0
        self.sizes: dict[int, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor) and (key := tensor.untyped_storage()._cdata) not in self.sizes:
                storage = tensor.untyped_storage()
                self.sizes[key] = storage.nbytes()
                self.bytes += storage.nbytes()
                self.peak = max(self.peak, self.bytes)
                weakref.finalize(storage, self._gone, key)
        return result

    def _gone(self, key: int) -> None:
        self.bytes -= self.sizes.pop(key)


def live_peaks(config: DistillConfig, student: UNetSpec, teacher: UNetSpec) -> tuple[int, int]:
    """Most bytes alive on top of the weights in the passes of one step and in its backward pass, without any memory."""
    batch, side = config.batch_size, config.resolution // 8
    # which pictures have to move is read from values, and fake tensors have none
    unreal = FakeTensorMode(allow_non_fake_inputs=True) if config.method == "koala" else nullcontext()
    with unreal, Live() as live:
        torch.set_default_dtype({"fp32": torch.float32, "bf16": torch.bfloat16}[config.teacher_precision])
        try:
            teacher_unet = UNet2DConditionModel(**teacher.config()).requires_grad_(False)
        finally:
            torch.set_default_dtype(torch.float32)
        if config.lora_rank:
            student_unet = teacher_unet.train()
            attach(student_unet, config.lora_rank, config.lora_alpha)
        else:
            student_unet = UNet2DConditionModel(**student.config()).train()
        if config.gradient_checkpointing:
            student_unet.enable_gradient_checkpointing()
        half = torch.autocast("cpu", dtype=torch.bfloat16, enabled=config.precision != "fp32")
        if config.lora_rank:
            called = Adapted(student_unet)
            called.forward = half(called.forward)
        else:
            student_unet.forward = half(student_unet.forward)  # as accelerate does
            called = student_unet
        step = (
            DistillationStep(config, teacher_unet, feature_pairs(config, student, teacher), torch.rand(1000))
            if config.method == "koala"
            else (PhasedStep if config.method == "phased" else GuidanceStep)(
                config,
                GuidedTeacher(
                    teacher_unet,
                    (torch.zeros(1, 77, teacher.cross_attention_dim), torch.zeros(1, teacher.pooled_dim)),
                    (config.guidance_min, config.guidance_max),
                ),
                torch.linspace(0.999, 0.005, 1000),
            )
        )
        data = Batch(
            latents=torch.zeros(batch, 4, side, side),
            context=torch.zeros(batch, 77, student.cross_attention_dim),
            pooled=torch.zeros(batch, student.pooled_dim),
            time_ids=torch.zeros(batch, 6),
        )
        timesteps = torch.full((batch,), 999, dtype=torch.int64)
        draws = Draws(noise=torch.zeros(batch, 4, side, side), timesteps=timesteps, picks=())
        gc.collect()
        weights, live.peak = live.bytes, 0
        with step.hooked(student_unet) as losses_of:
            losses = losses_of(called, data, draws)
            forward, live.peak = live.peak, 0
            losses.total.backward()
    return forward - weights, live.peak - weights


def run_memory(config: DistillConfig, student: UNetSpec, teacher: UNetSpec) -> RunMemory:
    return RunMemory(
        config=config,
        student=student,
        teacher=teacher,
        resolution=config.resolution or 256,
        device="cpu",
        memory=None,
        world=1,
        sharded=False,
    )


@pytest.mark.parametrize(
    "checkpointing", [pytest.param(False, marks=pytest.mark.slow), True], ids=["plain", "checkpointing"]
)
@pytest.mark.parametrize(
    ("student", "teacher", "precision", "resolution"),
    [
        pytest.param(TINY_KOALA_700M, TINY_SDXL, "fp32", 256, marks=pytest.mark.slow),
        (TINY_KOALA_700M, TINY_SDXL, "bf16", 512),
        pytest.param(KOALA_700M, SDXL, "bf16", 256, marks=pytest.mark.slow),
        pytest.param(KOALA_700M, SDXL, "bf16", 1024, marks=pytest.mark.slow),
    ],
    ids=lambda value: getattr(value, "name", value),
)
def test_a_step_has_in_memory_what_the_estimate_says(student, teacher, precision, resolution, checkpointing):
    config = DistillConfig(
        batch_size=2,
        resolution=resolution,
        precision=precision,
        teacher_precision=precision,
        gradient_checkpointing=checkpointing,
    )
    memory = run_memory(config, student, teacher)
    moments, always = memory.moments(2), sum(memory.always.values())
    names = "passes of student and teacher", "backward pass"
    for name, counted in zip(names, live_peaks(config, student, teacher), strict=True):
        predicted = moments[name] - always
        print(f"{name}: {predicted / 1e6:.1f} MB predicted, {counted / 1e6:.1f} MB alive")
        assert predicted == pytest.approx(counted, rel=0.15), name


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize(("method", "guidance"), [("phased", 2.0), ("phased", 1.0), ("guidance", 2.0)])
def test_a_step_of_another_method_has_in_memory_what_the_estimate_says(method, guidance, checkpointing):
    config = DistillConfig(
        method=method,
        batch_size=2,
        resolution=256,
        precision="fp32",
        teacher_precision="fp32",
        gradient_checkpointing=checkpointing,
        guidance_min=guidance,
        guidance_max=guidance,
    )
    memory = run_memory(config, TINY_SDXL, TINY_SDXL)
    moments, always = memory.moments(2), sum(memory.always.values())
    names = "passes of student and teacher", "backward pass"
    for name, counted in zip(names, live_peaks(config, TINY_SDXL, TINY_SDXL), strict=True):
        predicted = moments[name] - always
        print(f"{name}: {predicted / 1e6:.1f} MB predicted, {counted / 1e6:.1f} MB alive")
        assert predicted == pytest.approx(counted, rel=0.15), name


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("precision", ["fp32", pytest.param("bf16", marks=pytest.mark.slow)])
def test_a_step_of_a_lora_has_in_memory_what_the_estimate_says(precision, checkpointing):
    config = DistillConfig(
        method="phased",
        batch_size=2,
        resolution=256,
        precision=precision,
        teacher_precision=precision,
        gradient_checkpointing=checkpointing,
        guidance_min=2.0,
        guidance_max=2.0,
        lora_rank=16,
    )
    memory = run_memory(config, TINY_SDXL, TINY_SDXL)
    moments, always = memory.moments(2), sum(memory.always.values())
    names = "passes of student and teacher", "backward pass"
    for name, counted in zip(names, live_peaks(config, TINY_SDXL, TINY_SDXL), strict=True):
        predicted = moments[name] - always
        print(f"{name}: {predicted / 1e6:.1f} MB predicted, {counted / 1e6:.1f} MB alive")
        assert predicted == pytest.approx(counted, rel=0.15), name


def test_the_estimate_counts_a_loras_factors_as_they_are_attached():
    for spec in (TINY_SDXL, KOALA_700M, SDXL):
        with torch.device("meta"):
            network = UNet2DConditionModel(**spec.config())
            attach(network, 4, 8.0)
        assert lora_parameters(spec, 4) == sum(p.numel() for p in network.parameters() if p.requires_grad)
        assert lora_parameters(spec, 64) == 16 * lora_parameters(spec, 4)


TRAIN = """
import json, sys
from pathlib import Path
from koala.distill.settings import read
from koala.distill.estimate.forecast import estimate_here
from koala.distill.run.folder import RunFolder
from koala.distill.trainer import train
config = read(None, sys.argv[2:])
expected = estimate_here(config, measure=False)
train(RunFolder(path=Path(sys.argv[1])), config)  # not `koala distill`, which refuses what takes all of the memory
print(json.dumps(expected.to_dict()))
"""


def make_half_size(folder: Path) -> None:
    """tiny-sdxl around a wider U-Net of random weights in bf16."""
    shutil.copytree(EMBEDDED / "tiny-sdxl", folder, ignore=shutil.ignore_patterns("unet"))
    torch.manual_seed(0)
    UNet2DConditionModel(**HALF.config()).to(torch.bfloat16).save_pretrained(folder / "unet")


def make_full_size(folder: Path) -> None:
    subprocess.run([sys.executable, "-c", MAKE_FULL_SIZE, folder], cwd=ROOT, check=True)


def test_muon_works_in_what_the_estimate_says():
    config = DistillConfig(optimizer="muon")
    # which pictures have to move is read from values, and fake tensors have none
    unreal = FakeTensorMode(allow_non_fake_inputs=True) if config.method == "koala" else nullcontext()
    with unreal, Live() as live:
        unet = UNet2DConditionModel(**TINY_KOALA_700M.config())
        muon = build_optimizers(unet, config)[0]
        for weight in muon.param_groups[0]["params"]:
            weight.grad = torch.empty_like(weight)
        muon.step()  # makes its velocities
        gc.collect()
        before, live.peak = live.bytes, 0
        muon.step()
    memory = run_memory(config, TINY_KOALA_700M, TINY_SDXL)
    print(f"{memory.updating / 1e6:.2f} MB predicted, {(live.peak - before) / 1e6:.2f} MB alive")
    assert memory.updating == pytest.approx(live.peak - before, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "spec", "free"),
    [
        (make_half_size, HALF, 8),
        (make_full_size, SDXL, 21),  # 18 GB of disk; half an hour on two cores
    ],
    ids=["half-size", "full-size"],
)
def test_three_steps_at_256_px_peak_where_the_estimate_says(tmp_path, make, spec: UNetSpec, free):
    """SDXL's topology as a bf16 teacher and its 700M cut, a picture per step, no moving average."""
    with open("/proc/meminfo") as lines:
        available = next(int(line.split()[1]) / 1e6 for line in lines if line.startswith("MemAvailable"))
    if available < free:
        pytest.skip(f"needs {free} GB of free memory, and {available:.1f} GB are free")
    make(tmp_path / "teacher")
    settings = dict(
        teacher=tmp_path / "teacher",
        cache=tmp_path / "cache",
        resolution=256,
        num_pictures=4,
        captions="short",
        batch_size=1,
        num_steps=3,
        ema_decay=0,
        validation_pictures=1,
        log_every=1,
    )
    run, fields = tmp_path / "run", [f"{k}={v}" for k, v in settings.items()]
    done = subprocess.run([sys.executable, "-c", TRAIN, run, *fields], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    peak = max(line["peak_memory_bytes"] for line in lines if line["kind"] == "train")
    predicted = json.loads(done.stdout.splitlines()[-1])["predicted_peak_bytes"]
    print(f"{spec.name}: {predicted / 1e9:.2f} GB predicted, {peak / 1e9:.2f} GB measured")
    assert predicted == pytest.approx(peak, rel=0.15)
