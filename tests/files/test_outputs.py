"""Output is whole or absent, whatever stops the writing."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from koala.errors import UserError
from koala.files.outputs import check_file, check_folder, check_new_folder, new_file, new_folder, remove_abandoned

ROOT = Path(__file__).parents[2]


def test_a_folder_appears_when_it_is_whole(tmp_path):
    out = tmp_path / "deep" / "out"
    with new_folder(out, 0) as folder:
        (folder / "a").write_text("a")
        assert not out.exists()
    assert [p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*")] == ["deep", "deep/out", "deep/out/a"]


def test_an_empty_folder_is_filled_and_a_full_one_is_refused(tmp_path):
    with new_folder(tmp_path / "out", 0) as folder:
        (folder / "a").write_text("a")
    (tmp_path / "empty").mkdir()
    with new_folder(tmp_path / "empty", 0) as folder:
        (folder / "b").write_text("b")
    assert (tmp_path / "empty" / "b").read_text() == "b"
    for full in (tmp_path / "out", tmp_path / "out" / "a"):
        with pytest.raises(UserError, match="exists already; choose a new folder"), new_folder(full, 0):
            pytest.fail("it was opened")
    assert (tmp_path / "out" / "a").read_text() == "a"


@pytest.mark.parametrize("stop", [OSError("disk full"), KeyboardInterrupt()], ids=["disk full", "Ctrl-C"])
def test_nothing_is_left_when_the_writing_stops(tmp_path, stop):
    with pytest.raises(type(stop)), new_folder(tmp_path / "out", 0) as folder:
        (folder / "a").write_text("half")
        raise stop
    (tmp_path / "old").write_text("old")
    with pytest.raises(type(stop)), new_file(tmp_path / "old") as file:
        file.write_text("half")
        raise stop
    assert [p.name for p in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "old"


@pytest.mark.parametrize("stop", [OSError("disk full"), KeyboardInterrupt()], ids=["disk full", "Ctrl-C"])
def test_a_folder_replaces_the_old_one_when_it_is_whole_and_not_before(tmp_path, stop):
    out = tmp_path / "out"
    with new_folder(out, 0) as folder:
        (folder / "a").write_text("old")
    with pytest.raises(type(stop)), new_folder(out, 0, replace=True) as folder:
        (folder / "a").write_text("half")
        raise stop
    assert (out / "a").read_text() == "old"
    with new_folder(out, 0, replace=True) as folder:
        (folder / "b").write_text("new")
        assert (out / "a").read_text() == "old"
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == ["out", "out/b"]


def test_a_folder_that_another_process_filled_meanwhile_is_not_replaced(tmp_path):
    with pytest.raises(OSError), new_folder(tmp_path / "out", 0):
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "theirs").write_text("theirs")
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == ["out", "out/theirs"]


def test_a_file_replaces_the_old_one(tmp_path):
    for text in ("old", "new"):
        with new_file(tmp_path / "a.txt") as file:
            file.write_text(text)
        assert (tmp_path / "a.txt").read_text() == text


def test_no_space_is_said_before_anything_is_written(tmp_path):
    asked = shutil.disk_usage(tmp_path).total + 1
    says = r"out needs [\d.]+ GB, and the disk at .+ has [\d.]+ GB free; make room"
    with pytest.raises(UserError, match=says), new_folder(tmp_path / "out", asked):
        pytest.fail("it was opened")
    assert not list(tmp_path.iterdir())


def begun(out: Path) -> list[Path]:
    """What a writer that a kill -9 ended leaves of `out`: a file of one process, a folder of another."""
    killed = subprocess.Popen([sys.executable, "-c", HALF_WRITTEN, str(out)], stdout=subprocess.PIPE, cwd=ROOT)
    killed.stdout.readline()
    killed.kill()
    killed.wait()
    killed.stdout.close()
    return [p for p in out.parent.iterdir() if p.name.endswith(".partial")]


HALF_WRITTEN = """
import pathlib, sys, time
from koala.files.outputs import new_file, new_folder
out = pathlib.Path(sys.argv[1])
with new_file(out) as file, new_folder(out.with_name("folder"), 0) as folder:
    file.write_text("half"); (folder / "a").write_text("half")
    print("writing", flush=True)
    time.sleep(600)
"""


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path):
    """Symptom: every export that was killed left gigabytes behind under a hidden name, for ever."""
    left = begun(tmp_path / "a")
    assert len(left) == 2
    parts = left[0].name.split(".")
    stranger = tmp_path / ".".join([*parts[:-2], f"ffffff{parts[-2][6:]}", parts[-1]])  # written on another machine
    stranger.write_text("half")
    unrelated = tmp_path / ".b.123.partial"  # no name of ours
    unrelated.write_text("")
    with new_file(tmp_path / "b") as file:
        file.write_text("b")
    assert {p.name for p in tmp_path.iterdir()} == {"b", stranger.name, unrelated.name}


def test_a_living_writer_keeps_what_it_has_begun(tmp_path):
    with new_file(tmp_path / "a") as file, new_folder(tmp_path / "b", 0) as folder:
        file.write_text("a")
        with new_file(tmp_path / "a") as other:
            other.write_text("other")
        assert file.exists() and folder.exists()
    assert (tmp_path / "a").read_text() == "a" and (tmp_path / "b").is_dir()


def test_a_folder_that_was_being_replaced_when_its_writer_was_killed_is_put_back(tmp_path):
    (left,) = [p for p in begun(tmp_path / "a") if p.is_file()]
    earlier = tmp_path / left.name.replace(".a.", ".whole.").replace(".partial", ".earlier")
    earlier.mkdir()
    (earlier / "old").write_text("old")
    remove_abandoned(tmp_path)
    assert [p.relative_to(tmp_path).as_posix() for p in sorted(tmp_path.rglob("*"))] == ["whole", "whole/old"]


def test_many_threads_write_one_file_and_it_is_always_whole(tmp_path):
    """Symptom: two visitors who downloaded the same picture at once got half of it, or an error."""
    out, texts = tmp_path / "a", [f"{k}" * 50_000 for k in range(8)]

    def write(text: str) -> None:
        for _ in range(10):
            with new_file(out, durable=False) as file:
                file.write_text(text)
            assert out.read_text() in texts

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(write, texts))
    assert list(tmp_path.iterdir()) == [out]


def test_many_threads_replace_one_folder_and_it_is_always_whole(tmp_path):
    out = tmp_path / "out"

    def write(k: int) -> None:
        for _ in range(5):
            with new_folder(out, 0, replace=True) as folder:
                for name in ("a", "b"):
                    (folder / name).write_text(str(k))

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(4)))
    assert list(tmp_path.iterdir()) == [out]
    assert len({(out / name).read_text() for name in ("a", "b")}) == 1


def test_a_name_as_long_as_the_disk_takes_is_written(tmp_path):
    out = tmp_path / ("ä" * 120 + ".json")  # 245 bytes
    with new_file(out) as file:
        file.write_text("a")
    assert list(tmp_path.iterdir()) == [out]


@pytest.mark.parametrize(
    ("check", "name", "says"),
    [
        (check_file, "file/deep/a.png", "cannot be written: .*file is a file, not a folder; choose another place"),
        (check_folder, "file", "cannot be written: .*file is a file, not a folder"),
        (check_new_folder, "file/deep", "cannot be written"),
        (check_file, "full", "is a folder; name a file"),
        (check_new_folder, "full", "exists already; choose a new folder"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(tmp_path, check, name, says):
    (tmp_path / "file").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("")
    with pytest.raises(UserError, match=says):
        check(tmp_path / name)
    check_file(tmp_path / "new" / "a.png")
    check_folder(tmp_path / "full")
    check_new_folder(tmp_path / "new")
    assert {p.name for p in tmp_path.iterdir()} == {"file", "full"}  # asking leaves nothing


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="a folder in which not even root can write")
def test_a_folder_that_takes_no_file_is_refused_before_the_work():
    for check in (check_file, check_folder, check_new_folder):
        with pytest.raises(UserError, match="/proc takes no new file .*; choose another place"):
            check(Path("/proc/koala"))


def test_bytes_are_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    """A rename that outlived a power cut without its bytes left an empty file under the final name."""
    done, fsync, replace = [], os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (done.append(os.readlink(f"/proc/self/fd/{fd}")), fsync(fd)))
    monkeypatch.setattr(Path, "replace", lambda self, to: (done.append("rename"), replace(self, to))[1])
    monkeypatch.setattr(Path, "rename", lambda self, to: (done.append("rename"), replace(self, to))[1])
    with new_file(tmp_path / "a") as file:
        file.write_text("a")
    assert done == [str(file), "rename", str(tmp_path)]
    done.clear()
    with new_folder(tmp_path / "b", 0) as folder:
        (folder / "in").mkdir()
        (folder / "in" / "c").write_text("c")
    assert set(done[:3]) == {str(folder), str(folder / "in"), str(folder / "in" / "c")}
    assert done[3:] == ["rename", str(tmp_path)]


def test_a_full_disk_leaves_the_old_file(tmp_path):
    """A limit on the size of files, in a process of its own, stands for a disk that is full."""
    (tmp_path / "a").write_text("old")
    code = (
        "import pathlib, resource, signal, sys; from koala.files.outputs import new_file; "
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))\n"
        "with new_file(pathlib.Path(sys.argv[1])) as file: file.write_text('x' * 100)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], cwd=ROOT, capture_output=True, text=True)
    assert "File too large" in done.stderr
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("a", "old")]
