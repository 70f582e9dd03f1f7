"""Captures from strangers: whatever a file says of itself, it opens within bounds or is refused in words."""

import hashlib
import io
import json
import random
import resource
import struct
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save

from koala.attention import archive, maps, view
from koala.attention.capture import Capture
from koala.attention.kinds import KINDS, MEAN
from koala.errors import UserError
from koala.unet.specs import TINY_KOALA_700M
from tests import forked
from tests.attention.conftest import random_record

FOLDER = "1-model"
HOSTILE = (0, -1, 1, 2**20, 10**9, 2**63, 1e308, float("nan"), float("inf"), True, None, "", "a" * 10**5, [], {}, [[]])
MEMORY = 10**9  # bytes that a file of a few KB may take for all that is made of it


def whole_capture(folder: Path) -> tuple[dict, dict[str, torch.Tensor]]:
    """What a whole capture of one layer and two steps says of itself, and its tensors."""
    record = random_record(TINY_KOALA_700M, (900.0, 100.0), stages=["UP-2"], cross=True)
    record.save(folder)
    about = json.loads((folder / "attention.json").read_text())
    return about, {
        f"{s}.{p}.{n}": t
        for s, f in enumerate(record.frames)
        for p, qk in f.items()
        for n, t in zip("qk", qk, strict=True)
    }


def png(size: tuple[int, int] = (64, 64), more: bytes = b"") -> bytes:
    buffer = io.BytesIO()
    Image.new("1" if max(size) > 2048 else "RGB", size).save(buffer, "PNG")
    return buffer.getvalue() + more


def zipped(about: dict, tensors: bytes, picture: bytes | None = None, number: int = 1, **index) -> bytes:
    """A capture of so many models that are alike; the hash is right whatever the tensors are."""
    text = json.dumps(about | {"sha256": hashlib.sha256(tensors).hexdigest()})
    named = [f"{k}-model" for k in range(1, number + 1)]
    models = [{"folder": name, "title": name} for name in named]
    whole = {"format": "koala attention archive 1", "prompt": "", "told": "", "models": models} | index
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("capture.json", json.dumps(whole))
        for name in named:
            for file, content in (("attention.json", text), ("attention.safetensors", tensors)):
                packed.writestr(f"{name}/{file}", content)
            packed.writestr(f"{name}/picture.png", png() if picture is None else picture)
    return buffer.getvalue()


def opened(content: bytes, folder: Path) -> Capture:
    file = folder / "capture.zip"
    file.write_bytes(content)
    return archive.load(file)


def empty(about: dict, side: int) -> tuple[dict, bytes]:
    """A capture of a large picture whose heads have no numbers, so that all of its tensors take no byte."""
    layer = {"stage": "UP-2", "path": about["layers"][0]["path"], "kind": "self", "heads": 1, "dim": 0}
    layer["grid"] = [side // 16, side // 16]
    shape = [1, 1, (side // 16) ** 2, 0]
    header = {f"0.{layer['path']}.{n}": {"dtype": "F16", "shape": shape, "data_offsets": [0, 0]} for n in "qk"}
    text = json.dumps(header).encode()
    message = about | {"width": side, "height": side, "steps": 1, "timesteps": [1.0], "layers": [layer]}
    return message, struct.pack("<Q", len(text)) + text


def crowded(about: dict, count: int) -> bytes:
    """Tensors that nobody asked for, without a byte each."""
    header = {f"x{k}": {"dtype": "F16", "shape": [0], "data_offsets": [0, 0]} for k in range(count)}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text


BOMBS = {
    "patches without numbers": (
        lambda a, t: zipped(*empty(a, 32_768), png((32_768, 16))),
        "width is 32768, not a whole",
    ),
    "the same at a size that is allowed": (lambda a, t: zipped(*empty(a, 2048)), "has other heads than"),
    "a billion steps of no layer": (lambda a, t: zipped(a | {"steps": 10**9, "layers": []}, t), "steps is 1000000000"),
    "no picture at all": (lambda a, t: zipped(a | {"images": 0}, t), "images is 0"),
    "one layer ten thousand times": (
        lambda a, t: zipped(a | {"layers": a["layers"][:1] * 10**4}, t),
        "more than a network",
    ),
    "one layer twice": (lambda a, t: zipped(a | {"layers": a["layers"][:1] * 2}, t), "named twice"),
    "a hundred thousand tensors more": (lambda a, t: zipped(a, crowded(a, 10**5)), "names more than its 8 tensors"),
    "large pictures": (lambda a, t: zipped(a, t, png((9408, 9408)), 8), "of 9408x9408 px, the capture of 64x64"),
    "a picture of 60 MB of nothing": (
        lambda a, t: zipped(a, t, png(more=bytes(6 * 10**7))),
        "more than the 14.00 MB read here",
    ),
    "a long prompt": (lambda a, t: zipped(a, t, prompt="a" * 900_000), "more than 5,000 characters"),
    "long words": (lambda a, t: zipped(a | {"tokens": ["a" * 10**6]}, t), "a token is not a text of at most 200"),
    "numbers that have no end": (lambda a, t: zipped(a | {"timesteps": [float("inf"), 1.0]}, t), "must be numbers"),
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_that_would_take_much_is_refused_at_once(tmp_path, name):
    about, tensors = whole_capture(tmp_path / "made")
    content = BOMBS[name][0](about, save(tensors))
    begun = time.thread_time()
    with pytest.raises(UserError, match=BOMBS[name][1]):
        opened(content, tmp_path)
    print(f"{len(content):,} bytes, refused after {time.thread_time() - begun:.2f} s")


def test_pictures_count_in_the_budget(tmp_path):
    about, tensors = whole_capture(tmp_path / "made")
    result = opened(zipped(about, save(tensors), number=8), tmp_path)
    assert result.bytes == sum(side.record.bytes for side in result.sides) + 8 * (3 * 64 * 64 + len(png()))


def places(value: object, path: tuple = ()) -> list[tuple]:
    """Where anything stands in JSON."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in inner for place in places(each, (*path, key)))]


def changed(value: object, place: tuple, new: object) -> object:
    if not place:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[place[0]] = changed(value[place[0]], place[1:], new)
    return copy


def mutated(about: dict, tensors: bytes, rng: random.Random) -> bytes:
    """One to three places of the JSON or of the tensors' header with another value."""
    length = struct.unpack("<Q", tensors[:8])[0]
    header, index = (
        json.loads(tensors[8 : 8 + length]),
        {"prompt": "", "told": "", "models": [{"folder": FOLDER, "title": ""}]},
    )
    for _ in range(rng.randint(1, 3)):
        what = rng.choice(("about", "about", "header", "index"))
        source = {"about": about, "header": header, "index": index}[what]
        new = rng.choice(HOSTILE)
        old = rng.choice(places(source)[1:])
        value = changed(source, old, new)
        about, header, index = (
            value if what == name else before
            for name, before in (("about", about), ("header", header), ("index", index))
        )
    text = json.dumps(header).encode()
    return zipped(about, struct.pack("<Q", len(text)) + text + tensors[8 + length :], **index)


def open_many(folder: str) -> int:
    """In a process of its own, which gets no more than so much memory: what opens is looked at in every way."""
    about, tensors = whole_capture(Path(folder) / "made")
    rng, counts = random.Random(0), {"opened": 0, "refused": 0}
    content, held = save(tensors), int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + MEMORY, held + MEMORY))
    for _ in range(300):
        try:
            capture = opened(mutated(about, content, rng), Path(folder))
        except UserError as refused:
            counts["refused"] += 1
            assert 10 < len(str(refused)) < 1000, str(refused)
            continue
        counts["opened"] += 1
        assert view.value("id", capture)
        for kind in KINDS:
            asked = {"kind": kind, "stage": next(iter(capture.stages)), "step": MEAN, "box": [0.1] * 4}
            try:
                assert view.look(capture, asked)
            except UserError as refused:
                assert str(refused)
    print(counts)
    assert counts["opened"] > 5 and counts["refused"] > 100
    return 0


def test_a_capture_with_anything_in_it_opens_within_bounds_or_is_refused(tmp_path):
    process = forked.start(tmp_path / "said.txt", open_many, str(tmp_path))
    assert forked.end_of(process, 120) == 0, (tmp_path / "said.txt").read_text()[-3000:]
    print((tmp_path / "said.txt").read_text())


def test_segments_are_the_same_whatever_part_of_the_rows_is_in_memory(monkeypatch):
    """16,384 patches, as many as a layer may have, would be 1.1 GB of rows."""
    rows = torch.rand(64, 64, generator=torch.Generator().manual_seed(0)).softmax(-1)
    whole, read = maps.segments(rows, (8, 8)), []

    def some(indices: torch.Tensor) -> torch.Tensor:
        read.append(len(indices))
        return rows[indices]

    monkeypatch.setattr(maps, "_CHUNK", 64 * 7)
    assert torch.equal(maps.segments(some, (8, 8)), whole)
    assert max(read[1:]) == 7 and np.sum(read[1:]) == 2 * 64
