"""Files of a run that a disk, a hand or another program damaged: each is named, and nothing else suffers from it."""

import dataclasses
import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from koala.distill.config import DistillConfig
from koala.distill.run import intact, reporter, resuming
from koala.distill.run import manager as runs
from koala.distill.run.folder import RunFolder
from koala.distill.run.records import Status, read_entry
from koala.distill.run.reporter import Reporter
from koala.errors import UserError
from koala.process import started
from recipes.measure.damage import flip

CONFIG = DistillConfig(num_steps=10)


@pytest.fixture
def run(tmp_path) -> RunFolder:
    """A run by hand: everything but tensors that a network could use."""
    return by_hand(tmp_path / "run")


def by_hand(path: Path, steps=(5, 10)) -> RunFolder:
    run = RunFolder(path=path)
    run.path.mkdir()
    run.write_config(CONFIG)
    run.write_status(Status(state="stopped", step=10, num_steps=10))
    for step in range(1, 11):
        run.log({"kind": "train", "step": step, "loss": 1 / step, "seconds": 1.0, "peak_memory_bytes": None})
    for step in steps:
        folder = run.checkpoint(step)
        folder.mkdir(parents=True)
        for name in intact.FILES[:-1]:
            (folder / name).write_bytes(random.Random(f"{step}/{name}").randbytes(64))
        (folder / intact.STATE).write_text(json.dumps({"step": step}))
        intact.write_manifest(folder, CONFIG)
    return run


def test_what_is_no_checkpoint_is_left_out_and_named(run):
    """Symptom: an app that was started next to a folder step-7.bak ended with `invalid literal for int()`."""
    strays = ["step-7.bak", "step-x", "step--1", "step-007", "step-", "step-٣", "best"]
    for name in strays:
        (run.path / "checkpoints" / name).mkdir()
    (run.path / "checkpoints" / "step-7").write_text("a file")
    assert run.checkpoints() == [5, 10]
    assert run.strays() == sorted([*strays, "step-7"])
    with pytest.raises(UserError, match="step-7 is a file where a checkpoint goes; remove it"):
        run.forget_checkpoints_after(5)
    assert run.checkpoints() == [5, 10]


WRONG = {
    "empty": "",
    "cut off": '{"state": "running", "st',
    "a list": "[]",
    "no text": b"\xff\xfe\x00",
    "nested": "[" * 100_000,
    "without a step": '{"state": "running", "num_steps": 10}',
    "an unknown key": '{"state": "running", "step": 1, "num_steps": 10, "stap": 1}',
    "a state": '{"state": "runnung", "step": 1, "num_steps": 10}',
    "a text for a number": '{"state": "running", "step": "1", "num_steps": 10}',
    "true for a number": '{"state": "running", "step": true, "num_steps": 10}',
    "NaN": '{"state": "running", "step": 1, "num_steps": 10, "seconds_left": NaN}',
    "a group of processes": '{"state": "running", "step": 1, "num_steps": 10, "pid": -5}',
    "a number too large": f'{{"state": "running", "step": 1{"0" * 400}, "num_steps": 10}}',
    "a date that no calendar has": '{"state": "running", "step": 1, "num_steps": 10, "started": 1e300}',
    "null": '{"state": "running", "step": 1, "num_steps": 10, "started": null}',
}


@pytest.mark.parametrize("content", WRONG.values(), ids=WRONG)
def test_a_damaged_status_is_named_with_a_remedy(run, content):
    (run.path / "status.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    for look in (run.status, lambda: runs.alive(run), lambda: runs.state(run)):
        with pytest.raises(UserError, match="status.json is damaged: .*python -m koala distill --resume"):
            look()
    runs.delete(run)  # no damage keeps a run from being removed
    assert not run.path.exists()


@pytest.mark.parametrize("content", ["", "[]", "[1", '{"lerning_rate": 1}', '{"num_steps": "many"}', b"\xff"])
def test_a_damaged_config_is_named_and_taken_from_the_last_good_checkpoint(run, content):
    (run.path / "config.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    flip(run.checkpoint(10) / "ema.safetensors", 100)
    with pytest.raises(UserError, match="config.json is damaged: .*its checkpoints hold it too: python -m koala"):
        run.config()
    config, message = intact.config_of(run)
    assert (
        config == CONFIG and "config.json is damaged" in message and "it is restored from checkpoint step-5" in message
    )
    (run.path / "config.json").unlink()
    config, message = intact.config_of(run)
    assert config == CONFIG and "config.json is missing" in message
    assert [r.name for r in runs.list_runs(run.path.parent)] == ["run"]
    flip(run.checkpoint(5) / "ema.safetensors", 100)
    with pytest.raises(UserError, match="no checkpoint of .* is good; start over with --out"):
        intact.config_of(run)


def test_a_folder_without_a_run_says_so(tmp_path):
    with pytest.raises(UserError, match="holds no distillation"):
        intact.config_of(RunFolder(path=tmp_path))


LINES = [
    b"[1,2]", b"{}", b"null", b"7", b'"text"', b"\xff\xfe", b"[" * 100_000, b'{"kind": "train", "loss": 1}',
    b'{"kind": "train", "step": "3", "loss": 1}', b'{"kind": "train", "step": true, "loss": 1}',
    b'{"kind": "train", "step": 1.5, "loss": 1}', b'{"kind": "train", "step": -1, "loss": 1}',
    b'{"kind": "train", "step": 1e300, "loss": 1}', b'{"kind": "train", "step": 3, "loss": "1"}',
    b'{"kind": "train", "step": 3, "loss": 1' + b"0" * 400 + b"}", b'{"kind": "train", "step": 3, "loss": [1]}',
    b'{"kind": "train", "step": 1' + b"0" * 5000 + b"}", b'{"kind": ["train"], "step": 3, "loss": 1}',
    b'{"kind": "tran", "step": 3, "loss": 1}', b'{"kind": "train", "step": 3, "lass": 1}',
    b'{"kind": "train", "step": 3, "loss": 1, "seconds": NaN}', b'{"kind": "train", "step": 3, "loss": 1, "SA": null}',
    b'{"kind": "validation", "step": 3, "loss": 1, "timesteps": [1]}',
    b'{"kind": "validation", "step": 3, "loss": 1, "timesteps": {"a": {"loss": 1}}}',
    b'{"kind": "validation", "step": 3, "loss": 1, "timesteps": {"0-249": {"loss": "1"}}}',
    b'{"kind": "score", "step": 3, "loss": 1}',
]  # fmt: skip


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_a_damaged_line_of_the_metrics_is_left_out(line):
    assert read_entry(line) is None


def test_lines_that_a_run_writes_are_read():
    for entry in (
        {"kind": "train", "step": 3, "loss": 0.5, "SA": 0.1, "seconds": 2.0, "peak_memory_bytes": None},
        {"kind": "validation", "step": 0, "loss": float("inf"), "timesteps": {"0-249": {"loss": 1.0}}},
        {"kind": "score", "step": 3, "one_object": 0.5, "two_objects": 0.25},
    ):
        assert read_entry(json.dumps(entry).encode()) == entry


def test_damaged_lines_are_counted_and_the_half_one_of_a_killed_run_is_not(run):
    with run.metrics_file.open("ab") as file:
        file.write(b"[1,2]\n\xff\n\n" + b'{"kind": "train", "st')
    assert [e["step"] for e in run.metrics()] == list(range(1, 11))
    assert run.forget_metrics_after(5) == 2
    assert [e["step"] for e in run.metrics()] == [1, 2, 3, 4, 5]
    assert run.forget_metrics_after(5) == 0


@pytest.mark.parametrize("content", ["", "{}", "[1]", "[", '"a red circle"'])
def test_damaged_prompts_are_named(run, content):
    assert run.prompts() == []
    run.write_prompts(("a red circle",))
    assert run.prompts() == ["a red circle"]
    (run.samples / "prompts.json").write_text(content)
    with pytest.raises(UserError, match="prompts.json is damaged: .*the next validation rewrites it"):
        run.prompts()


def test_names_of_samples_that_are_none_are_left_out(run):
    run.samples.mkdir()
    for name in ("step-x-0.png", "step-5-0.png", "step-12-0.png", "step-99-0.png.bak", "step-٣-0.png", "step-50-1.png"):
        (run.samples / name).write_text("")
    assert run.last_drawn() == 12


def test_a_bit_anywhere_in_a_checkpoint_is_noticed(run):
    """Each bit of its manifest and its state, and some of the rest: refused with the other checkpoint as the remedy."""
    intact.verify(run, 10, CONFIG)
    for name in (*intact.FILES, intact.MANIFEST):
        file = run.checkpoint(10) / name
        content = file.read_bytes()
        for bit in random.Random(name).sample(range(8 * len(content)), 60):
            flip(file, bit)
            with pytest.raises(UserError, match="step-10 .* is damaged: .*; resume with --step 5, the last good one"):
                intact.verify(run, 10, CONFIG)
            flip(file, bit)
    intact.verify(run, 10, CONFIG)
    assert intact.check_files(run, 5) == CONFIG


def test_a_bit_anywhere_in_config_status_or_metrics_is_survived(run):
    """Read as it was, noticed by name, or a number that nobody can check: never anything else."""
    for name in ("config.json", "status.json", "metrics.jsonl"):
        file = run.path / name
        content = file.read_bytes()
        for bit in random.Random(name).sample(range(8 * len(content)), 150):
            flip(file, bit)
            try:
                list(run.metrics()), runs.state(run), runs.list_runs(run.path.parent)
            except UserError as error:
                assert str(file) in str(error)
            config, message = intact.config_of(run)
            changed = resuming.differences(config, CONFIG)
            if changed.keys() - resuming.FREE_FIELDS:
                with pytest.raises(UserError, match="belongs to another run: .*to resume it as it was trained, add"):
                    intact.verify(run, 10, config)
            file.write_bytes(content)


def test_a_checkpoint_under_another_name_is_refused(run):
    run.checkpoint(10).rename(run.checkpoint(20))
    with pytest.raises(UserError, match="step-20 .* is that of step 10 under another name; resume with --step 5"):
        intact.verify(run, 20, CONFIG)


def test_an_older_checkpoint_without_a_hash_of_its_manifest_is_read(run):
    file = run.checkpoint(10) / intact.MANIFEST
    output = json.loads(file.read_text())
    del output["sha256"]
    file.write_text(json.dumps(output))
    assert intact.verify(run, 10, CONFIG) == CONFIG


def test_the_status_of_an_older_run_is_read(run):
    """It counted a process's start in the kernel's ticks, without psutil."""
    ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    me = int(Path("/proc/self").resolve().name)
    run.write_status(Status(state="running", step=1, num_steps=10, pid=me, pid_started=ticks))
    assert runs.alive(run) and started(me) == ticks


def test_a_run_that_a_terminal_trains_is_neither_resumed_nor_deleted_whatever_its_status_says(run):
    code = (
        "import sys, time; from filelock import FileLock\n"
        "with FileLock(sys.argv[1]): print('locked', flush=True); time.sleep(60)"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(run.lock_file)], stdout=subprocess.PIPE)
    process.stdout.readline()
    try:
        (run.path / "status.json").write_text("")
        for action, words in ((runs.resume, "is running already"), (runs.delete, "is running; stop it first")):
            with pytest.raises(UserError, match=words):
                action(run)
        assert runs.held(run)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    assert not runs.held(run)


def test_a_clock_that_is_set_back_does_not_freeze_the_status(run, monkeypatch):
    """Symptom: after the clock was set back by an hour, the app showed the same step for an hour."""
    output = Reporter(run, 10, active=True)
    output.step(1, 1.0)
    monkeypatch.setattr(reporter, "INTERVAL", 0.01)
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 3600)
    time.sleep(0.02)
    output.step(2, 1.0)
    assert run.status().step == 2


def test_a_config_with_other_free_fields_goes_on(run):
    config = dataclasses.replace(CONFIG, num_steps=20)
    assert resuming.differences(config, intact.verify(run, 10, config)) == {"num_steps": (20, 10)}
