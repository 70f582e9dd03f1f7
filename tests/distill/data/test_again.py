"""Pictures out of reach are tried again by the next run; what is broken stays so; old runs keep their data."""

import csv
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from PIL import Image, UnidentifiedImageError, features
from safetensors import safe_open

from koala.distill.data import again, pictures
from koala.distill.data.cache import EncodingStopped, find

from .worlds import encoded, folders, parquet_file, png, set_config

SQUARE = (64, 64)
NAMED = ("red", "green", "blue", "yellow", "black", "white", "orange", "purple")
MISSING = (2, 5)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def site(tmp_path):
    """(folder, its address) of a web server."""
    folder = tmp_path / "site"
    folder.mkdir()
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield folder, f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def put(folder: Path, numbers) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for n in numbers:
        (folder / f"{n}.png").write_bytes(png(NAMED[n]))


def others() -> list[int]:
    return [n for n in range(len(NAMED)) if n not in MISSING]


def by_address(tmp_path, address: str, caption: str = "a {} picture"):
    rows = [{"url": f"{address}/{n}.png", "caption": caption.format(colour)} for n, colour in enumerate(NAMED)]
    file = parquet_file(tmp_path / "set.parquet", rows, row_group_size=8)
    return set_config(tmp_path, file, image_column="url", short_caption="caption", seed=4)


def by_parquet(folder: Path) -> None:
    parquet_file(folder / "set.parquet", [{"image": f"p/{n}.png", "txt": f"a {c}"} for n, c in enumerate(NAMED)])


def by_csv(folder: Path) -> None:
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "txt"), *((f"p/{n}.png", f"a {c}") for n, c in enumerate(NAMED))])


def learned(folder: Path) -> dict[int, tuple[torch.Tensor, torch.Tensor]]:
    """Number of each picture -> latents and what its first caption became, of the newest file of the one chunk."""
    with safe_open(sorted(folder.glob("file-*.safetensors"), key=lambda f: (len(f.name), f.name))[-1], "pt") as file:
        orders = file.get_tensor("64x64/order").tolist()
        latents, context = file.get_tensor("64x64/latents"), file.get_tensor("context")
        captions = file.get_tensor("64x64/captions")
    return {n: (latents[at], context[captions[at, 0]]) for at, n in enumerate(orders)}


def test_an_address_that_answers_by_now_is_learned_from_by_the_next_run(tmp_path, encoders, site):
    """What was there stays as it is to the bit, what came is what an undisturbed cache holds."""
    folder, address = site
    put(folder, others())
    wanted, output = by_address(tmp_path, address), []
    first = encoded(wanted, encoders, say=output.append)
    assert first.num_pictures == 6 and any("2 out of reach" in line for line in output)
    before = learned(folders(tmp_path)[0])
    assert encoded(wanted, encoders).key == first.key  # they are still away
    put(folder, MISSING)
    second = encoded(wanted, encoders)
    assert second.num_pictures == 8 and second.skipped == 0 and second.key != first.key
    after = learned(folders(tmp_path)[0])
    assert sorted(before) == others() and list(after) == list(range(8))
    for n in before:
        assert all(torch.equal(a, b) for a, b in zip(before[n], after[n], strict=True))
    context, _ = encoders.load("cpu").captions([f"a {colour} picture" for colour in NAMED])
    undisturbed = encoded(by_address(tmp_path / "new", address), encoders)
    assert undisturbed.key == folders(tmp_path)[0].name  # no picture is missing there, or in the name of the data
    fresh = learned(folders(tmp_path / "new")[0])
    for n in range(8):
        torch.testing.assert_close(
            after[n][0].float(), fresh[n][0].float(), rtol=0, atol=2e-3 * float(fresh[n][0].max())
        )
        torch.testing.assert_close(after[n][1], context[n], rtol=0, atol=1e-5)


def test_a_run_that_goes_on_keeps_what_it_learned_from_and_later_tries_add_up(tmp_path, encoders, site):
    folder, address = site
    put(folder, others())
    wanted = by_address(tmp_path, address)
    keys = [encoded(wanted, encoders).key]
    for n in MISSING:
        put(folder, [n])
        keys.append(encoded(wanted, encoders).key)
    assert len(set(keys)) == 3
    for count, key in zip((6, 7, 8), keys, strict=True):
        reused = encoded(wanted, encoders, key=key)
        assert reused.num_pictures == count and reused.key == key


def test_bytes_that_came_damaged_are_broken_and_not_asked_for_again(tmp_path, encoders, site):
    folder, address = site
    put(folder, others())
    wanted, output = by_address(tmp_path, address), []
    assert encoded(wanted, encoders).out_of_reach == 2
    for n in MISSING:
        (folder / f"{n}.png").write_bytes(png("red")[:40])
    data = encoded(wanted, encoders)
    assert data.skipped == 2 and data.out_of_reach == 0
    put(folder, MISSING)
    assert encoded(wanted, encoders, say=output.append).num_pictures == 6
    assert not any("retrying" in line for line in output)


def test_a_further_try_is_stopped_and_ends_in_time(tmp_path, encoders, site, monkeypatch):
    folder, address = site
    put(folder, others())
    wanted = by_address(tmp_path, address)
    first = encoded(wanted, encoders)
    put(folder, MISSING)
    asked, output = [], []
    with pytest.raises(EncodingStopped):
        encoded(wanted, encoders, should_stop=lambda: "retrying" in " ".join(asked), say=asked.append)
    monkeypatch.setattr(again, "_LONGEST", 0.0)
    assert encoded(wanted, encoders, say=output.append).key == first.key
    assert any("the next new run continues" in line for line in output)
    monkeypatch.undo()
    assert encoded(wanted, encoders).num_pictures == 8


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_a_decoder_that_was_missing_and_is_there_now(tmp_path, encoders, monkeypatch):
    folder, opened = tmp_path / "set", Image.open
    put(folder, others())
    for n in MISSING:
        Image.new("RGB", SQUARE, NAMED[n]).save(folder / f"{n}.avif")
    for n in range(len(NAMED)):
        (folder / f"{n}.txt").write_text("a picture")
    wanted = set_config(tmp_path, folder)

    def without(file):
        if b"ftypavif" in file.getvalue()[:32]:
            raise UnidentifiedImageError("unknown")
        return opened(file)

    with monkeypatch.context() as patch:
        patch.setattr(pictures.Image, "open", without)
        patch.setattr(pictures.features, "check", lambda name: name != "avif")
        assert encoded(wanted, encoders).out_of_reach == 2
    assert encoded(wanted, encoders).num_pictures == 8


@pytest.mark.parametrize("table", [by_parquet, by_csv])
def test_files_that_a_table_names_count_once_they_are_there(tmp_path, encoders, table):
    folder = tmp_path / "set"
    put(folder / "p", others())
    table(folder)
    wanted, output = set_config(tmp_path, folder), []
    first = encoded(wanted, encoders, say=output.append)
    assert first.num_pictures == 6 and any("2 out of reach" in line for line in output)
    put(folder / "p", MISSING)
    assert encoded(wanted, encoders).num_pictures == 8
    reused = encoded(wanted, encoders, key=first.key)
    assert reused.num_pictures == 6 and reused.key == first.key
    (folder / "p" / "0.png").write_bytes(png("pink"))  # that one was learned from
    assert find(wanted, encoders, key=first.key) is None
    put(folder / "p", [0])
    assert find(wanted, encoders, key=first.key) is not None
    (folder / "p" / "extra.png").write_bytes(png("pink"))  # a picture that no table named
    assert (find(wanted, encoders, key=first.key) is None) == (table is by_csv)


def test_what_became_reachable_is_no_part_of_old_data_whose_cache_is_gone(tmp_path, encoders):
    folder = tmp_path / "set"
    put(folder / "p", others())
    by_parquet(folder)
    wanted = set_config(tmp_path, folder)
    key = encoded(wanted, encoders).key
    put(folder / "p", MISSING)
    for file in folders(tmp_path)[0].glob("file-*"):
        file.unlink()
    assert find(wanted, encoders, key=key) is None
