"""Two processes against one at the same global batch: the same losses and weights, plain (DDP) and sharded (FSDP2)."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file

from koala.distill.run_folder import RunFolder
from koala.distill.trainer import train

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4
FSDP2 = json.loads((ROOT / "recipes" / "full_scale" / "fsdp2-8.json").read_text())["fsdp_config"]


def launch(*arguments: str, **environment: str) -> None:
    """Two CPU processes, as `accelerate launch` starts them on GPUs."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *arguments]
    variables = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=variables | environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def reference(small_cache, tmp_path_factory) -> tuple[RunFolder, Path]:
    """A run of one process, and its config as a file."""
    from tests.distill.conftest import SMALL, DistillConfig

    folder = tmp_path_factory.mktemp("processes")
    config = DistillConfig(
        **SMALL | dict(cache=str(small_cache), batch_size=4, num_steps=STEPS, checkpoint_every=2, empty_prompts=0.3)
    )
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    run = RunFolder(path=folder / "one")
    train(run, config)
    return run, folder / "config.json"


def assert_equal(run: RunFolder, reference: RunFolder) -> None:
    """Losses of every step to 1e-5, and the weights that come out."""
    mine, its = ([e for e in r.metrics() if e["kind"] == "train"] for r in (run, reference))
    assert [e["step"] for e in mine] == [e["step"] for e in its] == list(range(1, STEPS + 1))
    terms = ("loss", "task", "output", "SA", "LF")
    losses = [abs(a[t] - b[t]) for a, b in zip(mine, its, strict=True) for t in terms]
    weights = [
        (a - b).abs().max().item()
        for name in ("student", "ema")
        for a, b in zip(
            *(load_file(r.checkpoint(STEPS) / f"{name}.safetensors").values() for r in (run, reference)), strict=True
        )
    ]
    for what, differences in (("losses", losses), ("weights", weights)):
        print(f"{what}: max difference {max(differences):.3g}, mean {sum(differences) / len(differences):.3g}")
    assert max(losses) <= 1e-5
    assert max(weights) <= 2e-4  # AdamW's first steps are of the learning rate's size, whatever the gradient's


def test_two_processes_learn_what_one_does(reference, tmp_path):
    run = RunFolder(path=tmp_path / "two")
    launch("-m", "koala", "distill", "--config", str(reference[1]), "--out", str(run.path))
    assert_equal(run, reference[0])


def test_a_sharded_student_learns_the_same_and_goes_on_from_a_checkpoint_of_whole_ones(reference, tmp_path):
    whole, config = reference
    variables = {"ACCELERATE_USE_FSDP": "true"} | {
        f"FSDP_{name.removeprefix('fsdp_').upper()}": str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in FSDP2.items()
    }
    variables["FSDP_TRANSFORMER_CLS_TO_WRAP"] = variables.pop("FSDP_TRANSFORMER_LAYER_CLS_TO_WRAP")
    script = str(Path(__file__).with_name("sharded_on_cpu.py"))
    run = RunFolder(path=tmp_path / "sharded")
    launch(script, str(config), str(run.path), **variables)
    assert_equal(run, whole)
    for step in (2, STEPS):  # the first half of it by one process that shards nothing
        for file in (whole.checkpoint(step)).iterdir():
            (run.checkpoint(step) / file.name).write_bytes(file.read_bytes())
    run.remove_checkpoint(STEPS)
    launch(script, str(config), str(run.path), "2", **variables)
    assert_equal(run, whole)


@pytest.mark.slow
def test_a_batch_that_processes_cannot_share_is_refused(reference, tmp_path):
    config = tmp_path / "odd.json"
    config.write_text(json.dumps(dataclasses.replace(reference[0].config(), batch_size=3).to_dict()))
    with pytest.raises(AssertionError, match="batch_size 3 cannot be split over 2 processes"):
        launch("-m", "koala", "distill", "--config", str(config), "--out", str(tmp_path / "odd"))
