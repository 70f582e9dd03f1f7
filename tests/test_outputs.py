"""Output is whole or absent, whatever stops the writing."""

import shutil

import pytest

from koala.outputs import new_file, new_folder
from koala.request import RequestError


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
        with pytest.raises(RequestError, match="exists already; choose a new folder"), new_folder(full, 0):
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
    with pytest.raises(RequestError, match=says), new_folder(tmp_path / "out", asked):
        pytest.fail("it was opened")
    assert not list(tmp_path.iterdir())
