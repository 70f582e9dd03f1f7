"""The cache while it is made: killed, shared, damaged, on a full disk; it ends with the same bytes."""

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from koala.distill.config import DistillConfig
from koala.distill.data import chunks
from koala.distill.data.cache import EncodingStopped

from .worlds import COLOURS, encoded, files, folders, parquet_file, png, set_config

FILLER = Path(__file__).with_name("filler.py")
ROOT = Path(__file__).resolve().parents[3]


def start(tmp_path, wanted: DistillConfig, pause: float = 0) -> subprocess.Popen:
    file = tmp_path / "config.json"
    file.write_text(json.dumps(wanted.to_dict()))
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(FILLER), str(file), str(pause)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    assert process.stdout.readline() == "0 24 loading the encoders\n"
    return process


def go(process: subprocess.Popen) -> None:
    assert process.stdout.readline() == "ready\n"
    process.stdin.write("go\n")
    process.stdin.flush()


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, encoders) -> dict[str, bytes]:
    """The files of a cache that one process filled in one go: 24 pictures in six parts."""
    tmp_path = tmp_path_factory.mktemp("undisturbed")
    encoded(processes_config(tmp_path), encoders)
    return files(folders(tmp_path)[0])


def processes_config(tmp_path) -> DistillConfig:
    """Row groups of four pictures: many small parts."""
    rows = [{"image": png(COLOURS[n % 6], (64, 40 + n)), "txt": f"number {n}"} for n in range(24)]
    file = parquet_file(tmp_path / "set.parquet", rows)
    os.utime(file, (1, 1))
    return set_config(tmp_path, file)


@pytest.mark.slow
def test_killed_in_the_middle_the_next_one_goes_on_and_ends_with_the_same_bytes(tmp_path, encoders, undisturbed):
    wanted = processes_config(tmp_path)
    for kill_after in (3, 9):
        with start(tmp_path, wanted, pause=0.05) as process:
            go(process)
            seen = next(line for line in process.stdout if int(line.split()[0]) >= kill_after)
            process.kill()
        assert "encoding" in seen
    folder = folders(tmp_path)[0]
    before = files(folder)
    assert 2 < len(before) < len(undisturbed)
    (folder / ".file-00000-00005.0000.safetensors.1.partial").write_bytes(b"half")
    times = {name: (folder / name).stat().st_mtime_ns for name in before}
    assert encoded(wanted, encoders).num_pictures == 24
    assert files(folder) == undisturbed
    assert times == {name: (folder / name).stat().st_mtime_ns for name in before}  # nothing was made twice
    assert not list(folder.glob("*.partial"))


@pytest.mark.slow
def test_two_processes_at_once_share_the_work(tmp_path, undisturbed):
    wanted = processes_config(tmp_path)
    with start(tmp_path, wanted, pause=0.3) as first, start(tmp_path, wanted, pause=0.3) as second:
        for process in (first, second):
            go(process)
        output = [list(process.stdout) for process in (first, second)]
    assert [lines[-1] for lines in output] == ["pictures 24\n"] * 2
    assert files(folders(tmp_path)[0]) == undisturbed
    worked = [sum("encoding" in line for line in lines) // 2 for lines in output]  # one batch, one file
    print("parts that each process encoded:", worked)
    assert min(worked) > 0 and sum(worked) == 6


@pytest.mark.parametrize("rank", [0, 1])
def test_ranks_begin_with_their_own_parts_and_end_with_all(tmp_path, encoders, rank, undisturbed):
    wanted = processes_config(tmp_path)
    with pytest.raises(EncodingStopped):
        encoded(wanted, encoders, rank=rank, world=2, should_stop=lambda: any(tmp_path.rglob("file-*.safetensors")))
    data = encoded(wanted, encoders, rank=rank, world=2)
    assert data.num_pictures == 24 and files(folders(tmp_path)[0]) == undisturbed


def test_a_damaged_file_is_made_again(tmp_path, encoders, undisturbed):
    wanted = processes_config(tmp_path)
    encoded(wanted, encoders)
    folder = folders(tmp_path)[0]
    for name, damage in (("file-00000-00001.0000", b""), ("file-00000-00002.0000", b"\0" * 5000)):
        (folder / f"{name}.safetensors").write_bytes(damage)
    encoded(wanted, encoders)
    assert files(folder) == undisturbed


def test_a_disk_that_fills_up_leaves_whole_files(tmp_path, encoders, monkeypatch):
    wanted = processes_config(tmp_path)
    save, calls = chunks.save_file, iter(range(100))

    def failing(tensors, file, metadata):
        save(tensors, file, metadata=metadata)
        if next(calls) == 3:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(chunks, "save_file", failing)
        with pytest.raises(OSError, match="No space left"):
            encoded(wanted, encoders)
    assert not list(folders(tmp_path)[0].glob("*.partial"))
    assert encoded(wanted, encoders).num_pictures == 24
