"""The cache of encoded data: its key, what it gives back, and what survives a kill."""

import io
import logging
import shutil
import struct
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest
import torch
from PIL import Image

from koala.distill.data import cache, filling
from koala.distill.data.buckets import fit
from koala.distill.data.cache import EncodingStopped
from koala.distill.data.encoders import encoder_files
from koala.distill.data.pictures import upright
from koala.distill.data.sources import source_for
from koala.errors import UserError

from .worlds import COLOURS, config, encoded, files, folders, parquet_file, png, set_config, shard, text_folder

SQUARE = (128, 128)


class Unusable:
    """Encoders that must not be needed."""

    def __init__(self, encoders):
        self.identity = encoders.identity

    def load(self, device):
        raise AssertionError("the encoders were loaded, though everything was there")


# --- what it gives back


def test_a_batch_is_what_the_encoders_make_of_its_pictures_and_captions(tmp_path, encoders):
    wanted = config(tmp_path, captions="mixed")
    data = encoded(wanted, encoders)
    assert data.sizes == {SQUARE: 8} and data.num_pictures == 12 and data.skipped == 0
    samples = list(source_for(wanted, 128).parts[0].read(0))
    batch = data.batch(SQUARE, [5, 0, 3], [0.0, 0.8, -1])
    with_us = encoders.load("cpu")
    for place, (row, text) in enumerate([(5, 0), (0, 3), (3, None)]):
        latents = with_us.pictures(np.array(samples[row].image())[None])[0]
        caption = samples[row].captions[text] if text is not None else ""
        context, pooled = with_us.captions([caption])
        for what, ours, theirs, tolerance in (
            ("latents", batch.latents[place], latents, 2e-3 * latents.abs().max()),  # kept in half precision
            ("context", batch.context[place], context[0], 1e-5),  # as one of another batch
            ("pooled", batch.pooled[place], pooled[0], 1e-5),
        ):
            difference = (ours - theirs).abs()
            print(f"row {row}, {what}: max {difference.max():.1e}, mean {difference.mean():.1e}")
            assert ours.dtype == torch.float32 and difference.max() <= tolerance
    assert batch.time_ids.tolist() == [[128, 128, 0, 0, 128, 128]] * 3
    assert not batch.context[2].any() and not batch.pooled[2].any()


def test_captions_are_bit_for_bit_what_the_encoders_gave(tmp_path, encoders):
    wanted = config(tmp_path, num_pictures=6, validation_pictures=1)
    data = encoded(wanted, encoders)
    samples = list(source_for(wanted, 128).parts[0].read(0))[:6]
    texts = list(dict.fromkeys(text for sample in samples for text in sample.captions))
    context, pooled = encoders.load("cpu").captions(texts)
    for row in range(5):
        for pick in (0, 1):
            batch = data.batch(SQUARE, [row], [pick / 2])
            at = texts.index(samples[row].captions[pick])
            assert torch.equal(batch.context[0], context[at]) and torch.equal(batch.pooled[0], pooled[at])


def test_of_drawn_scenes_the_last_are_held_back(tmp_path, encoders):
    whole = encoded(config(tmp_path, validation_pictures=1), encoders)
    data = encoded(config(tmp_path, validation_pictures=5), encoders)
    assert data.sizes == {SQUARE: 7} and data.validation() == [(SQUARE, [0, 1, 2, 3, 4])]
    held = data.validation_batch(SQUARE, [0, 3], [0, 0])
    assert torch.equal(held.latents, whole.batch(SQUARE, [7, 10], [0, 0]).latents)


def test_every_picture_keeps_its_shape_in_buckets_and_its_crop_is_told(tmp_path, encoders):
    folder = text_folder(tmp_path / "set")
    for number, size in enumerate([(100, 50), (50, 100), (64, 64), (100, 51)]):
        (folder / f"{number}.png").write_bytes(png("red", size))
    square = encoded(set_config(tmp_path, folder, seed=1), encoders)  # which holds the last one back
    assert square.sizes == {(64, 64): 5}
    assert square.batch((64, 64), [0], [0]).time_ids.tolist() == [list(fit(100, 50, (64, 64)).time_ids)]
    data = encoded(set_config(tmp_path, folder, resolution=128, aspect_buckets=True, seed=1), encoders)
    assert data.sizes == {(96, 160): 1, SQUARE: 2, (160, 96): 2}
    wide = data.batch((160, 96), [0, 1], [0, 0])
    assert wide.latents.shape == (2, 4, 12, 20)
    assert (
        wide.time_ids[:, :2].tolist() == [[50, 100], [51, 100]]
        and (wide.time_ids[:, 4:] == torch.tensor([96, 160])).all()
    )


# --- the key


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (dict(learning_rate=0.1, batch_size=3, seed=9, num_steps=5, student_spec="koala-1b", features=("CA",)), True),
        (dict(num_pictures=8, validation_pictures=2, empty_prompts=0.5), True),
        (dict(captions="short"), False),
        (dict(resolution=160), False),
        (dict(aspect_buckets=True), False),
    ],
)
def test_the_key_is_data_encoders_and_resolution_alone(tmp_path, encoders, change, same):
    encoded(config(tmp_path), encoders)
    encoded(config(tmp_path, **change), encoders)
    assert len(folders(tmp_path)) == (1 if same else 2)


def test_another_vae_or_tokenizer_is_another_cache(tmp_path, encoders, embedded):
    encoded(config(tmp_path), encoders)
    copy = tmp_path / "same"
    shutil.copytree(embedded / "tiny-sdxl", copy)
    encoded(config(tmp_path, teacher=str(copy)), Unusable(encoder_files(str(copy), "cpu")))
    for name in ("vae/config.json", "tokenizer/tokenizer_config.json"):
        file = copy / name
        file.write_text(file.read_text() + "\n")
        other_encoders = encoder_files(str(copy), "cpu")
        assert other_encoders.identity != encoders.identity
    weights = copy / "vae" / "diffusion_pytorch_model.safetensors"
    before = other_encoders.identity
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    assert encoder_files(str(copy), "cpu").identity != before


def test_the_second_run_loads_no_encoders(tmp_path, encoders):
    encoded(config(tmp_path), encoders)
    again = encoded(config(tmp_path, learning_rate=0.5), Unusable(encoders))
    assert again.sizes == {SQUARE: 8}


def test_a_run_with_fewer_pictures_sees_the_same_data_whatever_lies_in_the_cache(tmp_path, encoders, monkeypatch):
    monkeypatch.setattr(filling, "CHUNK", 8)
    fresh = encoded(config(tmp_path, num_pictures=6, validation_pictures=1), encoders)
    larger = encoded(config(tmp_path / "other", num_pictures=16, validation_pictures=1), encoders)
    after = encoded(config(tmp_path / "other", num_pictures=6, validation_pictures=1), encoders)
    assert fresh.sizes == after.sizes == {SQUARE: 5} and larger.sizes == {SQUARE: 15}
    ours, theirs = (data.batch(SQUARE, range(5), [0] * 5) for data in (fresh, after))
    assert torch.equal(ours.latents, theirs.latents)


# --- broken pictures


def broken_rows() -> list[dict]:
    whole = png("red")
    rows = [{"image": png(c), "caption": f"a {c} picture"} for c in COLOURS]
    rows[1]["image"] = whole[: len(whole) // 2]  # cut off
    rows[2]["image"] = b"no picture at all"
    rows[3]["image"] = None
    rows[4]["caption"] = " "
    rows.append({"image": jpeg_with_damaged_exif(), "caption": "x"})
    return rows


def jpeg_with_damaged_exif() -> bytes:
    """Pillow turns pictures upright by EXIF, and raises struct.error over this one."""
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "hello"
    Image.new("RGB", (8, 8)).save(buffer, "JPEG", exif=exif)
    content = bytearray(buffer.getvalue())
    content[41] = 0
    with pytest.raises(struct.error):
        upright(Image.open(io.BytesIO(bytes(content))))
    return bytes(content)


def test_broken_pictures_are_counted_and_skipped_with_one_line_each(tmp_path, encoders, caplog):
    parquet_file(tmp_path / "set.parquet", broken_rows(), row_group_size=7)
    wanted = set_config(tmp_path, tmp_path / "set.parquet", short_caption="caption")
    with caplog.at_level(logging.WARNING, "koala"):
        data = encoded(wanted, encoders)
    assert data.skipped == 5 and data.num_pictures == 2 and data.sizes == {(64, 64): 1}
    lines = [record.getMessage() for record in caplog.records if record.getMessage().startswith("skipped ")]
    assert [n for n in range(7) if any(f"row {n} " in line for line in lines)] == [1, 2, 3, 4, 6], lines
    assert "no caption" in lines[3]
    again = encoded(wanted, Unusable(encoders))
    assert again.skipped == 5


def test_nothing_but_broken_pictures_is_refused_with_the_first_reason(tmp_path, encoders):
    parquet_file(tmp_path / "set.parquet", broken_rows()[1:5])
    with pytest.raises(UserError, match="no picture that can be used: 4 were skipped; the first: set.parquet, row 0"):
        encoded(set_config(tmp_path, tmp_path / "set.parquet", short_caption="caption"), encoders)
    assert not list((tmp_path / "cache").rglob("*0000*.safetensors"))  # remembered by nobody: the next try looks again


def test_256_broken_pictures_in_a_row_are_not_remembered_as_broken(tmp_path, encoders):
    """A network that went away breaks every picture behind an address."""
    rows = [{"image": f"file://{tmp_path}/gone/{n}.png", "caption": "x"} for n in range(256)]
    parquet_file(tmp_path / "set.parquet", rows, row_group_size=256)
    wanted = set_config(tmp_path, tmp_path / "set.parquet", short_caption="caption")
    with pytest.raises(UserError, match="256 pictures in a row"):
        encoded(wanted, encoders)
    (tmp_path / "gone").mkdir()
    for n in range(256):
        (tmp_path / "gone" / f"{n}.png").write_bytes(png("red"))
    assert encoded(wanted, encoders).num_pictures == 256


def test_pictures_behind_addresses_are_fetched_and_dead_ones_counted(tmp_path, encoders):
    text_folder(tmp_path / "site")
    serve = partial(SimpleHTTPRequestHandler, directory=str(tmp_path / "site"))
    with ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        rows = [{"url": f"{address}/{name}.png", "caption": "x"} for name in (0, "gone", 1)]
        rows.append({"url": "http://127.0.0.1:1/closed.png", "caption": "x"})
        file = parquet_file(tmp_path / "set.parquet", rows)
        data = encoded(set_config(tmp_path, file, image_column="url", short_caption="caption"), encoders)
        server.shutdown()
    assert data.num_pictures == 2 and data.skipped == 2


def test_all_pictures_held_back_is_refused(tmp_path, encoders):
    with pytest.raises(UserError, match="all 12 pictures.*validation_pictures=1"):
        encoded(config(tmp_path, validation_pictures=64), encoders)
    with pytest.raises(UserError, match="one picture"):
        encoded(config(tmp_path, num_pictures=1), encoders)


def test_a_picture_of_one_pixels_width_does_not_fill_the_memory(tmp_path, encoders):
    folder = text_folder(tmp_path / "set")
    (folder / "0.png").write_bytes(png("red", (1, 20_000)))
    data = encoded(set_config(tmp_path, folder), encoders)
    assert data.batch((64, 64), [0], [0]).time_ids.tolist() == [[20_000, 1, 639_968, 0, 64, 64]]


# --- parts of unknown length


def test_shards_longer_than_a_chunk_are_resumed_within(tmp_path, encoders, monkeypatch):
    monkeypatch.setattr(filling, "CHUNK", 2)
    entries = {f"{k:04}": {"png": png(c), "txt": c.encode()} for k, c in enumerate(COLOURS)}
    shard(tmp_path / "a.tar", entries)
    wanted = set_config(tmp_path, tmp_path / "a.tar")
    with pytest.raises(EncodingStopped):
        encoded(wanted, encoders, should_stop=lambda: any(tmp_path.rglob("shard-00000.0000.safetensors")))
    done = files(folders(tmp_path)[0])
    assert "shard-00000.0000.safetensors" in done and "shard-00000.0002.safetensors" not in done
    data = encoded(wanted, encoders)
    assert data.num_pictures == 6 and data.sizes == {(64, 64): 5}
    after = files(folders(tmp_path)[0])
    assert len(after) == 4 and {name: after[name] for name in done} == done  # 3 chunks and the empty text


@pytest.fixture
def stream(tmp_path, monkeypatch) -> str:
    """Shards of 1, 6, 2 and 6 pictures, whose lengths nobody knows beforehand; chunks of two."""
    monkeypatch.setattr(filling, "CHUNK", 2)
    for number, size in enumerate((1, 6, 2, 6)):
        rows = [{"image": png(c), "txt": f"{c} of {number}"} for c in COLOURS[:size]]
        parquet_file(tmp_path / "set" / f"{number}.parquet", rows)
    return f"hub:{tmp_path / 'set'}"


@pytest.mark.parametrize("wanted", [3, 8, 11, 15])
def test_a_stream_gives_as_many_pictures_as_were_asked_for(tmp_path, encoders, stream, wanted):
    """Where shards are shorter than their share, others give more: the same ones, whatever lies in the cache."""
    fresh = encoded(set_config(tmp_path, stream, num_pictures=wanted), encoders)
    assert fresh.num_pictures == wanted
    all_there = tmp_path / "other"
    encoded(set_config(all_there, stream), encoders)
    again = encoded(set_config(all_there, stream, num_pictures=wanted), encoders)
    ours, theirs = (data.batch((64, 64), range(wanted - 1), [0] * (wanted - 1)) for data in (fresh, again))
    assert torch.equal(ours.latents, theirs.latents) and torch.equal(ours.context, theirs.context)


def test_a_stream_with_fewer_pictures_than_asked_for_gives_all_and_says_so(tmp_path, encoders, stream, caplog):
    data = encoded(set_config(tmp_path, stream, num_pictures=100), encoders)
    assert data.num_pictures == 15
    assert "has no 100 pictures" in caplog.text


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_file_that_was_cut_off_is_named(tmp_path, encoders, kind):
    file = tmp_path / f"a.{kind}"
    if kind == "tar":
        shard(file, {f"{k}": {"png": png(c) + bytes(1000), "txt": b"x"} for k, c in enumerate(COLOURS)})
        file.write_bytes(file.read_bytes()[:5000])
    else:
        parquet_file(file, [{"image": png(c) + bytes(range(250)), "txt": "x"} for c in COLOURS])
        whole = bytearray(file.read_bytes())
        whole[50:500] = bytes(450)
        file.write_bytes(whole)
    with pytest.raises(UserError, match=rf"a\.{kind} (is not a complete tar|is damaged)"):
        encoded(set_config(tmp_path, file), encoders)


# --- the disk and the user


def test_a_full_disk_is_said_before_the_work_begins(tmp_path, encoders, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    with pytest.raises(UserError, match="make room"):
        encoded(config(tmp_path), Unusable(encoders))


def test_progress_counts_up_to_all_pictures(tmp_path, encoders):
    output = []
    encoded(config(tmp_path), encoders, on_progress=lambda *values: output.append(values))
    done = [values[0] for values in output]
    assert output[0] == (0, 12, "loading the encoders") and done == sorted(done) and {v[1] for v in output} == {12}
    assert done[-1] == 12


def test_the_cache_lies_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache.default_folder() == tmp_path / "koala" / "distill"
