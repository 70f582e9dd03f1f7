"""Two processes of one run: nothing that one decides alone leaves the other waiting, and their losses are those of one.

The processes are forks that meet as torchrun has them meet, on CPUs.
"""

import json
import os
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
from safetensors.torch import load_file

from koala.cli.main import main
from koala.distill.config import DistillConfig
from koala.distill.run.folder import RunFolder
from koala.distill.trainer import train
from tests import forked

pytestmark = pytest.mark.long

STUDENT = "0,1,1/-/1+1,1+1,0+0"
UNALIGNED = {"validate_every": 2, "checkpoint_every": 3}
LONGEST = 150  # s; what hangs, hangs for ever


def distill(*arguments: str) -> int:
    """`koala distill`: all that a process does."""
    return main(["distill", *arguments])


class Two:
    """Two processes of `koala distill`; what they said lies in two files."""

    def __init__(self, folder: Path, *arguments: str):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        meet = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        shared = {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", **meet}
        self.files = [folder / f"said-{rank}.txt" for rank in range(2)]
        self.processes: list[BaseProcess] = [
            forked.start(file, distill, *arguments, RANK=str(rank), LOCAL_RANK=str(rank), **shared)
            for rank, file in enumerate(self.files)
        ]

    @property
    def output(self) -> str:
        return "\n".join(file.read_text()[-3000:] for file in self.files if file.exists())

    def ends(self) -> list[int | None]:
        """Their exit statuses; None for one that did not end, which is then ended."""
        deadline = time.monotonic() + LONGEST
        result = [forked.end_of(process, max(0.1, deadline - time.monotonic())) for process in self.processes]
        for process in self.processes:
            if process.is_alive():
                process.kill()
                process.join()
        return result


@pytest.fixture
def config(small, tmp_path) -> Path:
    """Settings of a run of four steps whose validations and checkpoints fall apart."""
    file = tmp_path / "config.json"
    settings = small(
        student_spec=STUDENT, batch_size=4, num_steps=4, empty_prompts=0.3, learning_rate=1e-3, **UNALIGNED
    )
    file.write_text(json.dumps(settings.to_dict()))
    return file


TERMS = ("step", "loss", "task", "output", "SA", "LF")


def losses(run: RunFolder, terms: Sequence[str] = TERMS) -> Iterator[dict]:
    return ({term: entry[term] for term in terms} for entry in run.metrics() if entry["kind"] == "train")


def assert_same_losses(run: RunFolder, reference: RunFolder, terms: Sequence[str] = TERMS) -> None:
    """Every term of every step to 1e-5: what is added up in another order differs by that much."""
    entries, expected = list(losses(run, terms)), list(losses(reference, terms))
    assert [entry["step"] for entry in entries] == [entry["step"] for entry in expected]
    differences = [abs(a[term] - b[term]) for a, b in zip(entries, expected, strict=True) for term in a]
    print(f"max difference {max(differences):.3g}, mean {sum(differences) / len(differences):.3g}")
    assert max(differences) <= 1e-5


@pytest.mark.slow
def test_a_validation_between_two_checkpoints_does_not_hang_two_processes(config, tmp_path):
    """Symptom: the first process saved the best student so far, and waited there for the other for ever."""
    run, one = RunFolder(path=tmp_path / "two"), RunFolder(path=tmp_path / "one")
    two = Two(tmp_path, "--config", str(config), "--out", str(run.path))
    train(one, DistillConfig.from_dict(json.loads(config.read_text())))
    assert two.ends() == [0, 0], two.output
    assert run.status().state == "done"
    assert 2 in run.checkpoints()  # the best so far, saved in addition to those of every third step
    assert run.checkpoints() == one.checkpoints()
    assert_same_losses(run, one)


FEW = {"min_snr_gamma": 0.0, "guidance_min": 1.5, "guidance_max": 3.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "term"),
    [
        ({"method": "phased", "student_spec": STUDENT}, "consistency"),
        ({"method": "guidance", "student_spec": STUDENT}, "guidance"),
        ({"method": "phased", "student_spec": "sdxl", "lora_rank": 4}, "consistency"),
    ],
    ids=["phased", "guidance", "LoRA"],
)
def test_two_processes_of_a_few_step_method_have_the_losses_of_one(small, tmp_path, settings, term):
    """Each picture with a strength of guidance of its own; a picture that need not move keeps no process waiting."""
    config = small(batch_size=4, num_steps=3, learning_rate=1e-3, **FEW | settings)
    file = tmp_path / "config.json"
    file.write_text(json.dumps(config.to_dict()))
    run, one = RunFolder(path=tmp_path / "two"), RunFolder(path=tmp_path / "one")
    two = Two(tmp_path, "--config", str(file), "--out", str(run.path))
    train(one, config)
    assert two.ends() == [0, 0], two.output
    assert_same_losses(run, one, ("step", "loss", term))
    name = "pytorch_lora_weights.safetensors" if "lora_rank" in settings else "checkpoints/step-3/ema.safetensors"
    weights, expected = (load_file(each.path / name) for each in (run, one))
    assert max((a - expected[key]).abs().max().item() for key, a in weights.items()) <= 3e-3  # AdamW's first steps


@pytest.mark.slow
def test_a_run_that_one_signal_stopped_goes_on_with_one_process_and_then_with_two(config, tmp_path):
    """SIGTERM to the second process alone; two, one and two processes have the losses of one."""
    run, one = RunFolder(path=tmp_path / "moved"), RunFolder(path=tmp_path / "one")
    two = Two(tmp_path, "--config", str(config), "--out", str(run.path), "num_steps=400")
    deadline = time.monotonic() + LONGEST
    while not (run.status() and run.status().step >= 2):
        assert time.monotonic() < deadline and all(p.is_alive() for p in two.processes), two.output
        time.sleep(0.02)
    os.kill(two.processes[1].pid, signal.SIGTERM)
    assert two.ends() == [0, 0], two.output
    assert run.status().state == "stopped"
    step = run.status().step
    assert run.checkpoints()[-1] == step
    assert distill("--resume", str(run.path), f"num_steps={step + 2}", "accumulation=2") == 0
    again = Two(tmp_path, "--resume", str(run.path), f"num_steps={step + 4}")
    assert again.ends() == [0, 0], again.output
    assert distill("--config", str(config), "--out", str(one.path), f"num_steps={step + 4}") == 0
    assert_same_losses(run, one)
    assert [entry["processes"] for entry in run.history()] == [1, 2]


@pytest.mark.slow
def test_an_error_of_one_process_ends_both_with_its_words(config, tmp_path):
    """The first process alone writes: where it cannot, the second would wait for its checkpoint for ever."""
    run = RunFolder(path=tmp_path / "run")
    run.path.mkdir()
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "step-3").write_text("a file where a checkpoint goes")
    two = Two(tmp_path, "--config", str(config), "--out", str(run.path))
    assert two.ends() == [2, 2], two.output
    assert all("checkpoints" in file.read_text() for file in two.files)
