"""Every form of data gives the same samples, lazily, from any place on; what is missing is named."""

import csv
import json
import os
import re

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from koala.distill.config import DistillConfig
from koala.distill.data import pictures, samples
from koala.distill.data.sources import source_for
from koala.distill.data.webdataset import braces
from koala.errors import UserError
from koala.shapes.captions import parse
from koala.shapes.judge import verdict
from koala.shapes.scene import HELD_OUT

from .worlds import COLOURS, parquet_file, png, shard, text_folder

TOLD = {colour: f"a {colour} picture" for colour in COLOURS}


def source(data, **values):
    return source_for(DistillConfig(data=str(data), **{"captions": "short"} | values), 128)


def all_samples(dataset) -> list[samples.Sample]:
    return [sample for part in dataset.parts for sample in part.read(0)]


def check_all_colours(dataset) -> None:
    """Captions fit pictures, counts are right, and reading from the middle leaves out what is before it."""
    got = all_samples(dataset)
    assert [s.captions for s in got] == [(TOLD[c],) for c in COLOURS]
    for sample, colour in zip(got, COLOURS, strict=True):
        assert pictures.upright(sample.image()).getpixel((5, 5)) == Image.new("RGB", (1, 1), colour).getpixel((0, 0))
    for part in dataset.parts:
        whole = [sample.key for sample in part.read(0)]
        assert [sample.key for sample in part.read(1)] == whole[1:]
        assert part.count in (None, len(whole))


def test_pictures_with_text_files(tmp_path):
    check_all_colours(source(text_folder(tmp_path / "set"), short_caption="txt"))


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_pictures_with_a_metadata_file(tmp_path, kind):
    rows = []
    for number, colour in enumerate(COLOURS):
        file = tmp_path / "train" / f"{number}.png"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(png(colour))
        rows.append({"file_name": f"train/{number}.png", "text": TOLD[colour]})
    with open(tmp_path / f"metadata.{kind}", "w", newline="") as out:
        if kind == "csv":
            writer = csv.DictWriter(out, rows[0])
            writer.writeheader()
            writer.writerows(rows)
        else:
            out.writelines(json.dumps(row) + "\n" for row in rows)
    check_all_colours(source(tmp_path, short_caption="text"))


def pictures_as(form: str, tmp_path) -> list:
    if form == "bytes":
        return [png(c) for c in COLOURS]
    if form == "struct":
        return [{"bytes": png(c), "path": None} for c in COLOURS]
    for colour in COLOURS:
        (tmp_path / f"{colour}.png").write_bytes(png(colour))
    return [f"file://{tmp_path}/{c}.png" if form == "address" else f"{c}.png" for c in COLOURS]


@pytest.mark.parametrize("form", ["bytes", "struct", "path", "address"])
def test_parquet_with_pictures_in_every_form(tmp_path, form):
    pictures = pictures_as(form, tmp_path)
    rows = [{"image": p, "caption": TOLD[c], "extra": 1} for p, c in zip(pictures, COLOURS, strict=True)]
    dataset = source(parquet_file(tmp_path / "set.parquet", rows))
    assert [part.count for part in dataset.parts] == [4, 2]
    check_all_colours(dataset)


def test_a_folder_of_parquet_files(tmp_path):
    rows = [{"image": png(c), "caption": TOLD[c]} for c in COLOURS]
    parquet_file(tmp_path / "a" / "0.parquet", rows[:3])
    parquet_file(tmp_path / "a" / "1.parquet", rows[3:])
    check_all_colours(source(tmp_path / "a"))


@pytest.mark.parametrize("captions", ["txt", "in json"])
def test_webdataset_shards_named_by_braces(tmp_path, captions):
    caption_entry = {
        c: {"txt": TOLD[c].encode()} if captions == "txt" else {"json": {"caption": TOLD[c]}} for c in COLOURS
    }
    entries = {f"{k:04}": {"jpg": png(c), **caption_entry[c]} for k, c in enumerate(COLOURS)}
    for number in range(2):
        some = dict(list(entries.items())[3 * number : 3 * number + 3])
        shard(tmp_path / f"s-{number:03}.tar", some)
    field = "txt" if captions == "txt" else "caption"
    check_all_colours(source(tmp_path / "s-{000..001}.tar", short_caption=field))
    check_all_colours(source(tmp_path, short_caption=field))
    assert [part.count for part in source(tmp_path, short_caption=field, num_pictures=2).parts] == [2]


def test_braces():
    assert braces("a/{008..010}-{0..1}.tar") == [f"a/{n}-{k}.tar" for n in ("008", "009", "010") for k in (0, 1)]


def test_a_hub_data_set_is_streamed_with_broken_pictures_left_to_us(tmp_path):
    """`datasets` opens a local folder as it opens the hub: the same builder, streamed."""
    rows = [{"image": {"bytes": png(c), "path": None}, "caption": TOLD[c]} for c in COLOURS]
    parquet_file(tmp_path / "set" / "train-0.parquet", rows[:3])
    parquet_file(tmp_path / "set" / "train-1.parquet", rows[3:])
    dataset = source(f"hub:{tmp_path / 'set'}")
    assert len(dataset.parts) == 2
    check_all_colours(dataset)


def test_a_hub_data_set_that_is_not_there(tmp_path):
    with pytest.raises((UserError, OSError), match="nobody/nothing"):
        source("hub:nobody/nothing")
    with pytest.raises(UserError, match="hub:OWNER/NAME"):
        source("hub:nothing")


def test_a_stream_of_webdataset_shards(tmp_path):
    entries = {f"{k:04}": {"png": png(c), "txt": TOLD[c].encode()} for k, c in enumerate(COLOURS)}
    shard(tmp_path / "set" / "train-0.tar", entries)
    check_all_colours(source(f"hub:{tmp_path / 'set'}", short_caption="txt"))


# --- the shapes world


def test_scenes_depend_on_their_number_alone_and_show_no_held_out_pair():
    few, many = source("shapes", num_pictures=300), source("shapes", num_pictures=1000, learning_rate=0.1)
    assert few.identity == many.identity and [p.name for p in few.parts] == [p.name for p in many.parts][:2]
    first, again = list(few.parts[1].read(0)), list(many.parts[1].read(100))
    assert [s.captions for s in first[100:]] == [s.captions for s in again]
    assert first[100].image().tobytes() == again[0].image().tobytes()
    descriptions = [parse(text) for part in many.parts for s in part.read(0) for text in s.captions]
    assert not {(o.shape, o.colour) for d in descriptions for o in d.objects} & HELD_OUT


def test_half_of_the_scenes_show_one_object_and_every_caption_holds():
    config = DistillConfig(captions="mixed", num_pictures=1000)
    numbers = []
    for part in source_for(config, 256).parts:
        for sample in part.read(0):
            assert len(sample.captions) == 4 and "background" in sample.captions[2]
            numbers.append(len(parse(sample.captions[0]).objects))
            if len(numbers) % 100 == 0:
                assert all(verdict(sample.image(), parse(text)).all for text in sample.captions)
    shares = [numbers.count(n) / len(numbers) for n in (1, 2, 3)]
    print("shares of one, two, three objects:", shares)
    assert shares == pytest.approx([0.5, 0.4, 0.1], abs=0.04)


def test_a_small_canvas_holds_fewer_objects_and_a_tiny_one_none():
    small = source_for(DistillConfig(num_pictures=256), 128)
    assert {len(parse(s.captions[0]).objects) for s in all_samples(small)} == {1}
    with pytest.raises(UserError, match="128 px"):
        source_for(DistillConfig(), 96)


# --- what is missing


def test_missing_captions_are_named_with_what_there_is(tmp_path):
    text_folder(tmp_path / "set")
    with pytest.raises(UserError, match=r"no captions 'long'.*\.txt files\. Set short_caption"):
        source(tmp_path / "set", short_caption="long")
    file = parquet_file(tmp_path / "a.parquet", [{"image": b"", "caption": "x", "long": "y"}])
    with pytest.raises(UserError, match=r"detailed_caption.*caption, image, long\. Set detailed_caption"):
        source(file, captions="mixed")
    source(file, captions="mixed", detailed_caption="long")
    shard(tmp_path / "a.tar", {"0": {"jpg": png("red"), "json": {"prompt": "x"}}})
    with pytest.raises(UserError, match="jpg, json, prompt"):
        source(tmp_path / "a.tar")


def test_only_the_captions_that_are_learned_are_asked_for(tmp_path):
    file = parquet_file(tmp_path / "a.parquet", [{"image": png("red"), "caption": "x", "long": "y"}])
    assert all_samples(source(file))[0].captions == ("x",)
    both = source(file, captions="mixed", detailed_caption="long")
    assert all_samples(both)[0].captions == ("x", "y")


def test_missing_pictures_are_named_with_what_there_is(tmp_path):
    file = parquet_file(tmp_path / "a.parquet", [{"picture": b"", "caption": "x"}])
    with pytest.raises(UserError, match="set image_column to one of: caption, picture"):
        source(file)


@pytest.mark.parametrize("what", ["nothing", "no pictures", "no rows", "no samples", "a missing shard", "no tar"])
def test_empty_data_is_refused(tmp_path, what):
    folder = tmp_path / "set"
    folder.mkdir()
    data, message = folder, "holds no pictures"
    if what == "nothing":
        data, message = tmp_path / "absent", "there is no data at"
    elif what == "no pictures":
        (folder / "readme.txt").write_text("nothing here")
    elif what == "no rows":
        columns = {"image": pa.array([], pa.binary()), "caption": pa.array([], pa.string())}
        parquet.write_table(pa.table(columns), folder / "a.parquet")
        message = "no rows"
    elif what == "no samples":
        data, message = shard(folder / "a.tar", {}), "no samples"
    elif what == "a missing shard":
        shard(folder / "0.tar", {"0": {"jpg": png("red"), "txt": b"x"}})
        data, message = folder / "{0..1}.tar", "there is no shard .*1.tar"
    else:
        (folder / "a.tar").write_bytes(b"no tar at all")
        message = "not a complete tar file"
    with pytest.raises(UserError, match=message):
        source(data)


def test_one_picture_is_refused_and_its_folder_is_taken(tmp_path):
    folder = text_folder(tmp_path / "set")
    with pytest.raises(UserError, match="neither a .parquet nor a .tar file") as refused:
        source(folder / "0.png")
    (setting,) = re.findall(r"data=([^,]+),", str(refused.value))
    check_all_colours(source(setting, short_caption="txt"))


# --- pictures


def test_transparent_pictures_lie_on_white_and_turned_ones_stand_upright():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert pictures.upright(clear).getpixel((0, 0)) == (255, 255, 255)
    turned = Image.new("RGB", (4, 2))
    turned.getexif()[0x0112] = 6
    assert pictures.upright(turned).size == (2, 4)


def test_data_is_known_by_what_it_holds_wherever_it_lies_and_whenever_it_was_copied(tmp_path):
    folder = text_folder(tmp_path / "set")
    before = source(folder, short_caption="txt").identity
    moved = folder.rename(tmp_path / "moved")
    for file in moved.iterdir():
        os.utime(file, (1, 1))
    assert source(moved, short_caption="txt").identity == before
    (moved / "0.txt").write_text("a RED picture\n")  # of the same length, and of the same time
    os.utime(moved / "0.txt", (1, 1))
    assert source(moved, short_caption="txt").identity != before
