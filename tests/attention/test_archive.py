"""A capture as one file: what was saved comes back, and a file from elsewhere is checked before it is read."""

import io
import json
import zipfile

import pytest
import torch
from PIL import Image

from koala.attention import archive, view
from koala.attention.capture import Capture, Side
from koala.attention.recorded import AttentionRecord
from koala.errors import UserError
from koala.unet.specs import TINY_KOALA_700M, TINY_SDXL

TEACHER, STUDENT = "1-tiny-sdxl", "2-tiny-koala-700m"


@pytest.fixture
def capture(record_of):
    """A teacher of three steps and a student of two, pictures of 64 px."""
    records = record_of(TINY_SDXL, (900.0, 500.0, 100.0)), record_of(TINY_KOALA_700M, (900.0, 100.0), seed=1)
    sides = [Side(title=f"the {r.model}", picture=Image.new("RGB", (64, 64), "red"), record=r) for r in records]
    return Capture(prompt="a red circle", sides=tuple(sides), cost="It took a while.")


@pytest.fixture
def saved(capture, tmp_path):
    return archive.save(capture, tmp_path / "saved.zip")


@pytest.fixture
def changed(saved, tmp_path):
    """The saved file with some of its contents replaced, added, or (None) left out."""

    def write(change: dict, **how):
        out = tmp_path / "changed.zip"
        with zipfile.ZipFile(saved) as old, zipfile.ZipFile(out, "w", **how) as new:
            entries = {name: old.read(name) for name in old.namelist()} | change
            for name, content in entries.items():
                if content is not None:
                    new.writestr(name, content)
        return out

    return write


def test_what_was_saved_comes_back(capture, saved):
    loaded = archive.load(saved)
    assert (loaded.prompt, loaded.cost) == (capture.prompt, capture.cost)
    for own, other in zip(capture.sides, loaded.sides, strict=True):
        assert (own.title, own.record.layers, own.record.timesteps) == (
            other.title,
            other.record.layers,
            other.record.timesteps,
        )
        for frame, again in zip(own.record.frames, other.record.frames, strict=True):
            assert all(torch.equal(a, b) for path in frame for a, b in zip(frame[path], again[path], strict=True))
        assert own.picture.tobytes() == other.picture.tobytes()
    asked = {"kind": "row", "stage": "UP-2", "step": 1, "box": [0.1, 0.2, 0.1, 0.2]}
    assert view.look(loaded, asked) == view.look(capture, asked)


def test_a_picture_keeps_the_request_that_it_carries(capture, tmp_path):
    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "PNG", pnginfo=None, dpi=(72, 72))
    carrying = Capture(prompt="", sides=capture.sides, files=(buffer.getvalue(),) * 2)
    assert archive.load(archive.save(carrying, tmp_path / "one.zip")).files == carrying.files


def test_unzipped_its_folders_are_captures_of_the_library(saved, capture, tmp_path):
    with zipfile.ZipFile(saved) as packed:
        packed.extractall(tmp_path / "all")
    assert AttentionRecord.load(tmp_path / "all" / STUDENT).steps == 2


def about(saved, **change) -> bytes:
    with zipfile.ZipFile(saved) as packed:
        return json.dumps(json.loads(packed.read(f"{STUDENT}/attention.json")) | change).encode()


def index(**change) -> bytes:
    models = [{"folder": TEACHER, "title": "one"}, {"folder": STUDENT, "title": "two"}]
    return json.dumps(
        {"format": "koala attention archive 1", "prompt": "", "told": "", "models": models} | change
    ).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"../evil.json": b"x"}, r"holds '../evil.json'"),
        ({"/etc/passwd": b"x"}, "holds '/etc/passwd'"),
        ({f"{STUDENT}/../../attention.json": b"x"}, "is not a capture: it holds"),
        ({f"{STUDENT}/attention.pt": b"x"}, "is not a capture: it holds"),
        ({"capture.json": None}, "needs one capture.json"),
        ({"capture.json": b"{"}, "capture.json is damaged"),
        ({"capture.json": b"[" * 100_000}, "capture.json is damaged"),
        ({"capture.json": index(models=[])}, "names no models"),
        ({"capture.json": index(models=[{"folder": "../..", "title": ""}])}, "lacks ../../attention.json"),
        ({"capture.json": index(prompt=5)}, "names no models"),
        ({"capture.json": index(format="koala attention archive 2")}, "newer koala in format 2; this one reads 1"),
        ({"capture.json": index(format="pk3")}, "is not part of a capture"),
        ({f"{STUDENT}/picture.png": None}, f"lacks {STUDENT}/picture.png"),
        ({f"{STUDENT}/picture.png": b"GIF89a"}, f"{STUDENT}/picture.png is damaged"),
        ({f"{STUDENT}/attention.safetensors": b"short"}, f"{STUDENT}/attention.safetensors is damaged"),
        ({f"{TEACHER}/attention.json": b"{}"}, f"{TEACHER}/attention.json is damaged"),
    ],
    ids=str,
)
def test_a_file_that_is_no_capture_is_refused_by_name(changed, change, message):
    with pytest.raises(UserError, match=message) as refused:
        archive.load(changed(change))
    assert "/tmp" not in str(refused.value), "our own folders are nobody's business"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "koala attention 2"}, "newer koala in format 2"),
        ({"width": 128}, "is not a layer of this run"),
        ({"timesteps": [900.0]}, "not one timestep for each of 2 steps"),
        ({"steps": 0, "timesteps": []}, "steps is 0, not a whole number from 1 to 200"),
        ({"tokens": [7]}, "a token is not a text"),
        ({"seed": "7"}, "seed is 7, not a whole number"),
        ({"spec": 7}, "is damaged"),
    ],
    ids=str,
)
def test_what_a_record_says_of_itself_is_checked(saved, changed, change, message):
    with pytest.raises(UserError, match=message):
        archive.load(changed({f"{STUDENT}/attention.json": about(saved, **change)}))


def test_a_network_of_a_billion_layers_is_refused_at_once(saved, changed):
    spec = json.loads(about(saved))["spec"] | {"up_depths": [[10**9, 10**9], [2, 2], [0, 0]]}
    with pytest.raises(UserError, match="more than 1000 layers"):
        archive.load(changed({f"{STUDENT}/attention.json": about(saved, spec=spec)}))


def test_a_decompression_bomb_is_refused_before_it_is_read(changed):
    bomb = {f"{STUDENT}/attention.json": b" " * 20_000_000}
    file = changed(bomb, compression=zipfile.ZIP_DEFLATED)
    assert file.stat().st_size < 10**6
    with pytest.raises(UserError, match="takes 20.00 MB, more than the 10.00 MB read here"):
        archive.load(file)


def test_a_capture_above_the_limit_is_refused(saved):
    with pytest.raises(UserError, match="more than the 0.00 MB read here"):
        archive.load(saved, 1000)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.99])
def test_a_file_that_was_cut_off_is_refused(saved, part):
    content = saved.read_bytes()
    saved.write_bytes(content[: int(part * len(content))])
    with pytest.raises(UserError, match="not a complete capture"):
        archive.load(saved)


def test_a_changed_byte_is_found(saved):
    content = bytearray(saved.read_bytes())
    content[len(content) // 3] ^= 1
    saved.write_bytes(content)
    with pytest.raises(UserError, match="not a complete capture|damaged"):
        archive.load(saved)
