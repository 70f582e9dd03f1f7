"""Three steps of the few-step recipes at full size on a CPU: the memory that they take next to their estimate.

    python -m recipes.measure.full_size_few_steps --work DIR --out docs/measurements/few-steps-full-size-cpu.json

The U-Nets have their real shapes and random weights, since memory depends on nothing else. The settings are the
recipes' own but for what the machine forces: one small picture per step, and AdamW in fp32, as its 8-bit states need a
GPU. A recipe for which too little memory is free is named with what it needs. DIR takes 20 GB of disk while it runs.
"""

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import psutil
import torch

from koala.distill.config import DistillConfig
from koala.distill.estimate.total import estimate
from koala.distill.settings import read
from koala.evaluate.reports import circumstances
from koala.files.outputs import new_file
from koala.models.measured import RANDOM
from koala.models.registry import find
from koala.unet.specs import student
from koala.words import gigabytes

ROOT = Path(__file__).parents[2]
RECIPES = ("sdxl-pcm-lora-24gb", "koala-700m-pcm")
SETTINGS = dict(
    data="shapes",
    captions="short",
    num_pictures=4,
    batch_size=1,
    accumulation=1,
    num_steps=3,
    optimizer="adamw",
    ema_device="student",
    validate_every=0,
    validation_pictures=1,
    validation_prompts=(),
    checkpoint_every=10,
    log_every=1,
)
_MAKE = """
import sys
from koala.models.random_weights import random_library
library = random_library("cpu", dtype="bfloat16")
library.get(sys.argv[1]).pipeline.save_pretrained(sys.argv[2], max_shard_size="100GB")
"""
_TRAIN = """
import sys
from pathlib import Path
from koala.distill.run.folder import RunFolder
from koala.distill.settings import read
from koala.distill.trainer import train
train(RunFolder(path=Path(sys.argv[1])), read(Path(sys.argv[2])), say=lambda line: print(line, flush=True))
"""


def measured(recipe: str, resolution: int, free: int, work: Path) -> dict:
    """A row of the report; `free` is how many bytes the run may take."""
    config = read(ROOT / "recipes" / "full_scale" / f"{recipe}.json", base=None)
    config = DistillConfig(**config.to_dict() | SETTINGS | {"resolution": resolution})
    spec = find(config.teacher).spec
    expected = estimate(
        config,
        student(config.student_spec, spec),
        spec,
        resolution=resolution,
        device="cpu",
        memory_bytes=None,
    )
    names = (*SETTINGS, "resolution", "lora_rank", "gradient_checkpointing", "precision", "teacher_precision")
    row = {
        "recipe": recipe,
        "teacher": f"{config.teacher} at full size, random weights, {config.teacher_precision}",
        "settings": {name: getattr(config, name) for name in names},
        "predicted_peak_bytes": expected.predicted_peak_bytes,
        "predicted_always": dict(expected.always),
        "predicted_moments": dict(expected.moments),
    }
    if expected.predicted_peak_bytes > free:
        needs = f"it takes {gigabytes(expected.predicted_peak_bytes)}, of which {gigabytes(free)} were free"
        return row | {"not_measured": needs}
    return row | _trained(config, work)


def _trained(config: DistillConfig, work: Path) -> dict:
    """What the run took; its files are removed."""
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    try:
        subprocess.run([sys.executable, "-c", _MAKE, config.teacher, work / "teacher"], cwd=ROOT, check=True)
        own = {"teacher": str(work / "teacher"), "cache": str(work / "cache")}
        with new_file(work / "config.json") as file:
            file.write_text(json.dumps(config.to_dict() | own))
        command = [sys.executable, "-c", _TRAIN, work / "run", work / "config.json"]
        subprocess.run(command, cwd=ROOT, check=True)
        lines = [json.loads(line) for line in (work / "run" / "metrics.jsonl").read_text().splitlines()]
        steps = [line for line in lines if line["kind"] == "train"]
        sizes = {"checkpoint": sum(f.stat().st_size for f in (work / "run" / "checkpoints" / "step-3").iterdir())}
        if (lora := work / "run" / "pytorch_lora_weights.safetensors").exists():
            sizes["LoRA"] = lora.stat().st_size
        return {
            "measured_peak_bytes": max(line["peak_memory_bytes"] for line in steps),
            "losses": [{"step": line["step"], "loss": line["loss"]} for line in steps],
            "bytes_on_disk": sizes,
        }
    finally:
        shutil.rmtree(work)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="for models and runs, then removed")
    parser.add_argument("--resolution", type=int, default=128, metavar="PX", help="side of the picture (128)")
    parser.add_argument("--memory", type=float, metavar="GB", help="what a run may take; what is free, if not given")
    args = parser.parse_args()
    if args.work.exists():
        parser.error(f"{args.work} exists; name a new folder, it is removed in the end")
    free = int(args.memory * 1e9) if args.memory else psutil.virtual_memory().available
    rows = [measured(recipe, args.resolution, free, args.work) for recipe in RECIPES]
    report = circumstances(
        ["DIR" if word == str(args.work) else word for word in sys.argv[1:]],
        torch.device("cpu"),
        program="recipes.measure.full_size_few_steps",
        weights=RANDOM,
    )
    with new_file(args.out) as partial:
        partial.write_text(json.dumps(report | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
