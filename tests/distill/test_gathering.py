"""A run's data, when pictures that were out of reach come back between two runs."""

import dataclasses
import json
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from koala.distill.run import snapshots
from koala.distill.run.folder import RunFolder
from koala.distill.trainer import train
from koala.errors import UserError

from .data.worlds import COLOURS, parquet_file, png
from .test_two_processes import Two

NAMED = (*COLOURS, "orange", "purple")
MISSING = (2, 5)


def put(folder, numbers) -> None:
    folder.mkdir(exist_ok=True)
    for n in numbers:
        (folder / f"{n}.png").write_bytes(png(NAMED[n]))


def table_of(small, tmp_path, place: str, **settings):
    """A run's settings, whose table names eight pictures at a place."""
    rows = [{"image": f"{place}/{n}.png", "txt": f"a {colour} picture"} for n, colour in enumerate(NAMED)]
    parquet_file(tmp_path / "set.parquet", rows, row_group_size=8)
    own = dict(data=str(tmp_path / "set.parquet"), cache=str(tmp_path / "cache"), num_pictures=0, resolution=64)
    return small(**own, captions="short", checkpoint_every=1, validation_pictures=1, **settings)


def pictures_of(run: RunFolder) -> str:
    """What a run says of the pictures that it could not use; nothing where it used all."""
    _, _, which = snapshots.position(run, run.checkpoints()[-1])[0].data.partition("-")
    return which


@pytest.mark.slow
def test_a_new_run_learns_from_what_came_and_an_old_one_goes_on_without_it(tmp_path, small):
    config, output = table_of(small, tmp_path, "p", num_steps=2), []
    put(tmp_path / "p", [n for n in range(8) if n not in MISSING])
    old, new = RunFolder(path=tmp_path / "old"), RunFolder(path=tmp_path / "new")
    train(old, config, say=output.append)
    assert "2 of 8 pictures were skipped; 2 out of reach: the next new run tries again" in output
    weights = [file.read_bytes() for file in sorted(old.student.rglob("*.safetensors"))]
    steps = [(entry["step"], entry["loss"]) for entry in old.metrics() if entry["kind"] == "train"]
    put(tmp_path / "p", MISSING)
    output.clear()
    train(new, config, say=output.append)
    assert not any("skipped" in line for line in output) and not pictures_of(new)
    train(old, config, resume_from=1, say=output.append)
    assert any("left to a new run" in line for line in output) and pictures_of(old)
    assert [file.read_bytes() for file in sorted(old.student.rglob("*.safetensors"))] == weights
    assert [(entry["step"], entry["loss"]) for entry in old.metrics() if entry["kind"] == "train"] == steps
    put(tmp_path / "p", [0])
    (tmp_path / "p" / "0.png").write_bytes(png("pink"))  # of what it learned from
    with pytest.raises(UserError, match="changed since checkpoint step-1"):
        train(old, dataclasses.replace(config, num_steps=3), resume_from=1)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass


@pytest.mark.long
@pytest.mark.slow
@pytest.mark.parametrize("resumed", [False, True])
def test_two_processes_try_again_together_and_go_on_together(tmp_path, small, resumed):
    """The first of them alone tries again, before both encode."""
    put(tmp_path / "site", [n for n in range(8) if n not in MISSING])
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path / "site"))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        config, output = table_of(small, tmp_path, f"http://127.0.0.1:{server.server_port}", num_steps=1), []
        (tmp_path / "config.json").write_text(json.dumps(config.to_dict()))
        old, new = (RunFolder(path=tmp_path / name) for name in ("old", "new"))
        train(old, config, say=output.append)
        assert any("2 out of reach" in line for line in output)
        put(tmp_path / "site", MISSING)
        if resumed:
            train(RunFolder(path=tmp_path / "between"), config)
            two = Two(tmp_path, "--resume", str(old.path), "num_steps=2")
        else:
            two = Two(tmp_path, "--config", str(tmp_path / "config.json"), "--out", str(new.path))
        assert two.ends() == [0, 0], two.output
        came = ["2 of them are there now" in file.read_text() for file in two.files]
        assert came == ([False, False] if resumed else [True, False])
        assert bool(pictures_of(old if resumed else new)) == resumed
        server.shutdown()
