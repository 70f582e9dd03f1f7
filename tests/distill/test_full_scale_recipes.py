"""Every full-scale recipe is read by what will read it, and its README's figures are those of today's estimate."""

import json
from pathlib import Path

import pytest
import torch
from accelerate.commands.config.config_args import load_config_from_file
from diffusers import UNet2DConditionModel

from koala.distill.config import DistillConfig
from koala.distill.estimate.total import estimate
from koala.distill.loss.pairs import feature_pairs
from koala.distill.settings import read
from koala.models.registry import find
from koala.unet.specs import student

FOLDER = Path(__file__).parents[2] / "recipes" / "full_scale"
RECIPES = ("koala-lightning-700m", "koala-lightning-1b", "koala-700m-24gb", "koala-700m-pcm", "sdxl-pcm-lora-24gb")
LAUNCHES = ("one-gpu", "ddp-8", "fsdp2-8")
RUNS = {  # estimate's file -> recipe, launch, GB of one GPU
    "koala-lightning-700m-ddp-8": ("koala-lightning-700m", "ddp-8", 80),
    "koala-lightning-1b-ddp-8": ("koala-lightning-1b", "ddp-8", 80),
    "koala-lightning-1b-fsdp2-8": ("koala-lightning-1b", "fsdp2-8", 80),
    "koala-700m-24gb-one-gpu": ("koala-700m-24gb", "one-gpu", 24),
    "koala-700m-pcm-one-gpu": ("koala-700m-pcm", "one-gpu", 24),
    "sdxl-pcm-lora-24gb-one-gpu": ("sdxl-pcm-lora-24gb", "one-gpu", 24),
}


def recipe(name: str) -> DistillConfig:
    return read(FOLDER / f"{name}.json")


def launch(name: str):
    return load_config_from_file(str(FOLDER / f"{name}.json"))


def test_every_file_is_covered():
    assert {f.stem for f in FOLDER.glob("*.json")} == {*RECIPES, *LAUNCHES}
    assert {f.stem for f in (FOLDER / "estimates").glob("*.json")} == set(RUNS)


@pytest.mark.parametrize(("name", "pairs"), [("koala-lightning-700m", 21), ("koala-lightning-1b", 30)])
def test_the_lightning_recipes_are_the_papers(name, pairs):
    config = recipe(name)
    teacher = find(config.teacher)
    assert teacher.name == "sdxl-lightning-4step"
    assert (config.optimizer, config.learning_rate, config.schedule) == ("adamw", 1e-5, "constant")
    assert (config.batch_size, config.num_steps, config.resolution) == (128, 500_000, 1024)
    assert (config.task_weight, config.output_weight, config.feature_weight) == (1, 1, 1)
    spec = student(config.student_spec, teacher.spec)
    kinds = [p.kind for p in feature_pairs(config, spec, teacher.spec)]
    assert (kinds.count("SA"), kinds.count("LF")) == (pairs, 2)


@pytest.mark.parametrize(
    ("name", "teacher", "rank"), [("koala-700m-pcm", "koala-700m", 0), ("sdxl-pcm-lora-24gb", "sdxl-base", 64)]
)
def test_the_four_step_recipes_have_the_numbers_of_phased_consistencys_own_script(name, teacher, rank):
    """train_pcm_lora_sdxl.sh; its guidance is one less than diffusers', and it has no moving average.

    Its LoRA has rank 64 and peft's own alpha, 8.
    """
    config = recipe(name)
    assert (config.method, config.phases, config.solver_steps, config.teacher_steps) == ("phased", 4, 40, 1)
    assert (config.guidance_min - 1, config.guidance_max - 1, config.huber, config.target) == (6, 7, 0.001, "student")
    assert (config.optimizer, config.learning_rate, config.weight_decay) == ("adamw8bit", 2e-6, 0)
    assert (config.schedule, config.warmup_steps, config.max_grad_norm) == ("constant", 500, 1)
    assert (config.batch_size, config.num_steps, config.resolution, config.empty_prompts) == (80, 20_000, 1024, 0)
    assert (config.lora_rank, config.lora_alpha) == (rank, 8)
    card = find(config.teacher)
    assert card.name == teacher and student(config.student_spec, card.spec) == card.spec


@pytest.mark.parametrize("name", LAUNCHES)
def test_accelerate_reads_the_launch_configs(name):
    config = launch(name)
    assert config.mixed_precision == recipe("koala-lightning-700m").precision
    assert config.num_processes == (1 if name == "one-gpu" else 8)
    distributed = {"one-gpu": "NO", "ddp-8": "MULTI_GPU", "fsdp2-8": "FSDP"}[name]
    assert str(config.distributed_type).rpartition(".")[2] == distributed


def test_fsdp_shards_modules_that_the_student_has():
    wrapped = launch("fsdp2-8").fsdp_config["fsdp_transformer_layer_cls_to_wrap"].split(",")
    spec = student("koala-700m", find("sdxl-lightning-4step").spec)
    with torch.device("meta"):
        classes = {type(m).__name__ for m in UNet2DConditionModel(**spec.config()).modules()}
    assert set(wrapped) <= classes


@pytest.mark.parametrize("file", RUNS)
def test_the_estimates_are_todays_and_the_readme_says_them(file):
    name, how, memory = RUNS[file]
    config, gpus = recipe(name), launch(how).num_processes
    teacher = find(config.teacher).spec
    result = estimate(
        config,
        student(config.student_spec, teacher),
        teacher,
        resolution=config.resolution,
        device="cuda",
        memory_bytes=memory * 10**9,
        world=gpus,
        sharded=how.startswith("fsdp"),
    )
    assert result.fits
    assert config.batch_size % (gpus * config.accumulation) == 0
    written = json.loads((FOLDER / "estimates" / f"{file}.json").read_text())
    assert written == json.loads(json.dumps(result.to_dict())), "write it again: koala distill --estimate --json"
    row = (
        f"| {name} | {gpus} x {memory} GB, `{how}` | {result.pictures_per_pass} "
        f"| {result.predicted_peak_bytes / 1e9:.1f} GB | {result.batch_that_fits} | {result.total_flops:.2e} FLOP "
        f"| {result.uncached_flops:.2e} FLOP | {result.total_flops / 140e12 / 86400:.1f} |"
    )
    assert row in (FOLDER / "README.md").read_text()
