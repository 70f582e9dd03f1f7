"""Two processes against one at the same global batch: the same losses and weights, plain (DDP) and sharded (FSDP2)."""

import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from accelerate import PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file

from koala.distill.processes import this_process
from koala.distill.run.folder import RunFolder
from koala.distill.settings import read
from koala.distill.trainer import train
from tests import forked

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
STEPS = 4
LONGEST = 200  # s
STUDENT = "0,1,1/-/1+1,1+1,0+0"  # sharded, every parameter costs 10 ms a step, whatever its size
FSDP2 = json.loads((ROOT / "recipes" / "full_scale" / "fsdp2-8.json").read_text())["fsdp_config"]


def launch(*arguments: str) -> None:
    """Two CPU processes of `python ...`, as `accelerate launch` starts them on GPUs. What hangs says where."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *arguments]
    variables = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    variables |= {"PYTHONFAULTHANDLER": "1"}
    launcher = subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        _, message = launcher.communicate(timeout=LONGEST)
    except subprocess.TimeoutExpired:
        for process in (*psutil.Process(launcher.pid).children(recursive=True), launcher):
            process.send_signal(signal.SIGABRT)  # each writes the stacks of its threads
        message = f"it hangs after {LONGEST} s:\n{launcher.communicate()[1]}"
    assert launcher.returncode == 0, message[-12_000:]


@pytest.fixture(scope="module")
def reference(small_cache, tmp_path_factory) -> tuple[RunFolder, Path]:
    """A run of one process, and its config as a file."""
    from tests.distill.conftest import SMALL, DistillConfig

    folder = tmp_path_factory.mktemp("processes")
    settings = dict(student_spec=STUDENT, batch_size=4, num_steps=STEPS, checkpoint_every=2, empty_prompts=0.3)
    settings |= dict(validate_every=1)  # a best step between two checkpoints is saved by all processes, or by none
    config = DistillConfig(**SMALL | dict(cache=str(small_cache)) | settings)
    (folder / "config.json").write_text(json.dumps(config.to_dict()))
    run = RunFolder(path=folder / "one")
    train(run, config)
    return run, folder / "config.json"


def assert_equal(
    run: RunFolder, reference: RunFolder, terms: tuple[str, ...] = ("loss", "task", "output", "SA", "LF")
) -> None:
    """Losses of every step to 1e-5, and the weights that come out."""
    entries, expected = ([e for e in r.metrics() if e["kind"] == "train"] for r in (run, reference))
    assert [e["step"] for e in entries] == [e["step"] for e in expected] == list(range(1, STEPS + 1))
    losses = [abs(a[t] - b[t]) for a, b in zip(entries, expected, strict=True) for t in terms]
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


@pytest.mark.slow  # test_two_processes.py compares the losses of two processes by default
def test_two_processes_learn_what_one_does(reference, tmp_path):
    run = RunFolder(path=tmp_path / "two")
    launch("-m", "koala", "distill", "--config", str(reference[1]), "--out", str(run.path))
    assert_equal(run, reference[0])


def sharded(config: str, run: str, *step: str) -> None:
    """One process of a sharded run.

    accelerate shards on GPUs only, by its own choice: torch's FSDP2 and every line of the trainer run on CPUs as well.
    So here accelerate is told that these are GPUs, after the processes have found each other.
    """
    this_process()
    PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    train(RunFolder(path=Path(run)), read(Path(config)), resume_from=int(*step) if step else None)


def launch_sharded(folder: Path, *arguments: str) -> None:
    """Two processes as a launcher leaves them, which sets where they meet and what they shard."""
    variables = {"ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_FSDP": "true", "OMP_NUM_THREADS": "1"} | {
        f"FSDP_{name.removeprefix('fsdp_').upper()}": str(value).lower() if isinstance(value, bool) else str(value)
        for name, value in FSDP2.items()
    }
    variables["FSDP_TRANSFORMER_CLS_TO_WRAP"] = variables.pop("FSDP_TRANSFORMER_LAYER_CLS_TO_WRAP")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    variables |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    message = [folder / f"said-{rank}.txt" for rank in range(2)]
    processes = [
        forked.start(file, sharded, *arguments, RANK=str(rank), LOCAL_RANK=str(rank), **variables)
        for rank, file in enumerate(message)
    ]
    ends = [forked.end_of(process) for process in processes]
    assert ends == [0, 0], "\n".join(file.read_text()[-3000:] for file in message)


@pytest.mark.slow
def test_a_sharded_student_learns_the_same_and_goes_on_from_a_checkpoint_of_whole_ones(reference, tmp_path):
    whole, config = reference
    run = RunFolder(path=tmp_path / "sharded")
    launch_sharded(tmp_path, str(config), str(run.path))
    assert_equal(run, whole)
    for step in (2, STEPS):  # the first half of it by one process that shards nothing
        for file in (whole.checkpoint(step)).iterdir():
            (run.checkpoint(step) / file.name).write_bytes(file.read_bytes())
    run.remove_checkpoint(STEPS)
    launch_sharded(tmp_path, str(config), str(run.path), "2")
    assert_equal(run, whole)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "term"), [("phased", "consistency"), ("guidance", "guidance")])
def test_a_sharded_student_of_a_few_step_method_learns_what_one_process_does(reference, tmp_path, method, term):
    settings = dict(method=method, min_snr_gamma=0.0, guidance_min=1.5, guidance_max=3.0, validate_every=0)
    config = dataclasses.replace(reference[0].config(), **settings)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.to_dict()))
    whole, run = RunFolder(path=tmp_path / "one"), RunFolder(path=tmp_path / "sharded")
    train(whole, config)
    launch_sharded(tmp_path, str(file), str(run.path))
    assert_equal(run, whole, ("loss", term))


@pytest.mark.slow
def test_a_batch_that_processes_cannot_share_is_refused(reference, tmp_path):
    config = tmp_path / "odd.json"
    config.write_text(json.dumps(dataclasses.replace(reference[0].config(), batch_size=3).to_dict()))
    with pytest.raises(AssertionError, match="batch_size 3 cannot be split over 2 processes"):
        launch("-m", "koala", "distill", "--config", str(config), "--out", str(tmp_path / "odd"))
