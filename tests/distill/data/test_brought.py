"""Folders, tables and archives as other tools leave them: what is read, what is counted as broken, what is told."""

import io
import json
import os
import re
import shlex
import subprocess
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image, features
from pyarrow import parquet

from koala.distill.config import DistillConfig
from koala.distill.data.pictures import upright
from koala.distill.data.sources import source_for
from koala.distill.run.preflight import describe_data
from koala.errors import UserError


def png(value: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 32), (value, 40, 90)).save(buffer, "png")
    return buffer.getvalue()


def pictures(folder: Path, count: int = 3, ending: str = "png", caption: str = "txt") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        (folder / f"{k}.{ending}").write_bytes(png(20 * k))
        if caption:
            (folder / f"{k}.{caption}").write_text(f"circle {k}", encoding="utf-8")
    return folder


def read(data: Path, **settings) -> tuple[dict[str, str], list[str]]:
    """(what a picture is called -> its first caption, what is broken and why)."""
    good, bad = {}, []
    for part in source_for(DistillConfig(data=str(data), **settings), 32).parts:
        for sample in part.read(0):
            if sample.fault or not sample.captions:
                bad.append(f"{sample.key}: {sample.fault or 'no caption'}")
                continue
            try:
                upright(sample.image())
            except Exception as error:
                bad.append(f"{sample.key}: {error}")
            else:
                good[Path(sample.key).name.partition(".")[0]] = sample.captions[0]
    return good, bad


CIRCLES = {str(k): f"circle {k}" for k in range(3)}


@pytest.mark.parametrize(("ending", "caption"), [("png", "txt"), ("PNG", "TXT"), ("Png", "txt")])
def test_names_may_end_in_any_case(tmp_path, ending, caption):
    assert read(pictures(tmp_path, ending=ending, caption=caption)) == (CIRCLES, [])


def test_a_name_is_the_same_name_composed_or_decomposed(tmp_path):
    """As macOS and Linux write an accent."""
    (tmp_path / f"{unicodedata.normalize('NFD', 'é')}.png").write_bytes(png(3))
    (tmp_path / f"{unicodedata.normalize('NFC', 'é')}.txt").write_text("accent", encoding="utf-8")
    good, bad = read(tmp_path)
    assert list(good.values()) == ["accent"] and not bad


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
def test_a_caption_may_begin_with_a_byte_order_mark(tmp_path, encoding):
    pictures(tmp_path, 1)
    mark = {"utf-16-le": b"\xff\xfe", "utf-16-be": b"\xfe\xff"}.get(encoding, b"")
    (tmp_path / "0.txt").write_bytes(mark + "a café\r\nat night\r\n".encode(encoding))
    assert read(tmp_path) == ({"0": "a café\nat night"}, [])


def test_a_caption_in_latin_1_is_told_and_never_mangled(tmp_path):
    pictures(tmp_path, 2)
    (tmp_path / "0.txt").write_bytes("a café".encode("latin-1"))
    good, (bad,) = read(tmp_path)
    assert good == {"1": "circle 1"} and "0.png" in bad and "is not UTF-8" in bad and "save it as UTF-8" in bad


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_bad_rows_of_a_table_are_named_by_line_and_the_rest_is_learned(tmp_path, mark):
    pictures(tmp_path, caption="")
    rows = ["file_name,text", '0.png,"circle 0"', "1.png,circle, red", "2.png,circle 2"]
    (tmp_path / "metadata.csv").write_text(mark + "\n".join(rows) + "\n", encoding="utf-8")
    good, (bad,) = read(tmp_path)
    assert good == {"0": "circle 0", "2": "circle 2"}
    assert "metadata.csv, line 3" in bad and "goes into quotes" in bad
    (tmp_path / "metadata.csv").write_text("\n".join([*rows[:2], '1.png,"circle, red"', rows[3]]))  # the remedy
    assert read(tmp_path) == ({"0": "circle 0", "1": "circle, red", "2": "circle 2"}, [])
    rows = ["file_name,text,artist", "0.png,circle 0,me", "1.png,circle 1", "2.png,circle 2,"]
    (tmp_path / "metadata.csv").write_text(mark + "\n".join(rows), encoding="utf-8")
    good, (bad,) = read(tmp_path)
    assert good == {"0": "circle 0", "2": "circle 2"} and "line 3" in bad and "holds 2 where the header names 3" in bad


@pytest.mark.parametrize(("mark", "name"), [(";", "semicolons"), ("\t", "tabs"), ("|", "vertical bars")])
def test_a_table_with_other_marks_than_commas_is_refused_by_their_name(tmp_path, mark, name):
    pictures(tmp_path, caption="")
    rows = [("file_name", "text"), *((f"{k}.png", f"circle {k}") for k in range(3))]
    file = tmp_path / "metadata.csv"
    file.write_text("\n".join(mark.join(row) for row in rows))
    with pytest.raises(UserError, match=f"metadata.csv separates its columns by {name}"):
        read(tmp_path)
    file.write_text("\n".join(",".join(row) for row in rows))  # the remedy
    assert read(tmp_path) == (CIRCLES, [])


def test_bad_lines_of_a_jsonl_are_named_and_the_rest_is_learned(tmp_path):
    pictures(tmp_path, caption="")
    lines = [json.dumps({"file_name": f"{k}.png", "text": f"circle {k}"}) for k in range(3)]
    (tmp_path / "metadata.jsonl").write_text("\n".join([*lines, "[1]", '{"text": "x"}', "{"]))
    good, bad = read(tmp_path)
    assert good == CIRCLES and [b for b in bad if "line 4" in b] and [b for b in bad if "line 5" in b]
    assert [b for b in bad if "line 6" in b] and len(bad) == 3


def test_a_table_may_name_its_pictures_as_windows_does_and_lie_in_a_split(tmp_path):
    pictures(tmp_path / "train" / "sub", caption="")
    rows = ["file_name,text", *(f"sub\\{k}.png,circle {k}" for k in range(3))]
    (tmp_path / "train" / "metadata.csv").write_text("\n".join(rows))
    assert read(tmp_path) == (CIRCLES, [])


def test_a_json_beside_a_picture_gives_the_caption_inside_it(tmp_path):
    pictures(tmp_path, caption="")
    for k in range(3):
        (tmp_path / f"{k}.json").write_text(json.dumps({"caption": f"circle {k}", "width": 32}))
    assert read(tmp_path, short_caption="json", captions="short") == (CIRCLES, [])
    (tmp_path / "1.json").write_text('{"caption": ')
    for setting in ("json", "caption"):
        good, (bad,) = read(tmp_path, short_caption=setting, captions="short")
        assert good == {"0": "circle 0", "2": "circle 2"} and "1.png" in bad and "is not JSON" in bad


@pytest.mark.parametrize("column", ["caption.txt", "CAPTION.TXT"])
def test_the_captions_that_were_set_are_learned_where_no_others_are_there(tmp_path, column):
    """Symptom: short_caption was set, and the refusal asked for detailed_caption, which nobody had spoken of."""
    archive(tmp_path / "a.tar", members(("image.png", "caption.txt")))
    settings = {"image_column": "image.png", "short_caption": column}
    for captions in ("detailed", "short", "mixed"):
        assert read(tmp_path, **settings, captions=captions) == (CIRCLES, [])
    prose = {f"{k}.prose.txt": f"prose {k}".encode() for k in range(3)}
    archive(tmp_path / "a.tar", dict(sorted((members() | prose).items())))
    assert read(tmp_path, short_caption="prose.txt") == ({str(k): f"prose {k}" for k in range(3)}, [])
    assert read(tmp_path, short_caption="none.txt") == (CIRCLES, [])  # of a style that is not learned
    for captions in ("short", "mixed"):
        with pytest.raises(UserError, match="has no captions 'none.txt'"):
            read(tmp_path, short_caption="none.txt", captions=captions)


def archive(file: Path, members: dict[str, bytes], mode: str = "w") -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, mode) as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return file


def members(names: tuple[str, str] = ("png", "txt")) -> dict[str, bytes]:
    return {f"{k}.{n}": png(k) if n == names[0] else f"circle {k}".encode() for k in range(3) for n in names}


def test_a_stray_archive_never_replaces_the_pictures_and_is_told(tmp_path):
    archive(pictures(tmp_path / "data") / "old" / "backup.tar", {"x.png": png(9), "x.txt": b"old"})
    assert read(tmp_path / "data") == (CIRCLES, [])
    output = describe_data(DistillConfig(data=str(tmp_path / "data")))
    assert "3 pictures with .txt" in output and "1 shard" in output and "data=" in output


def test_a_preview_beside_many_shards_does_not_replace_them(tmp_path):
    pictures(tmp_path / "data", 1)
    for k in range(3):
        archive(tmp_path / "data" / f"{k}.tar", {f"{k}.png": png(k), f"{k}.txt": f"circle {k}".encode()})
    assert read(tmp_path / "data") == (CIRCLES, [])
    output = describe_data(DistillConfig(data=str(tmp_path / "data")))
    assert "1 picture with .txt" in output and "using the shards" in output


def test_the_column_that_is_asked_for_chooses_the_table(tmp_path):
    pictures(tmp_path, caption="old")
    rows = [{"photo": f"{k}.png", "text": f"circle {k}"} for k in range(3)]
    parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")
    result = [
        s
        for part in source_for(DistillConfig(data=str(tmp_path), image_column="photo"), 32).parts
        for s in part.read(0)
    ]
    assert [s.captions for s in result] == [(f"circle {k}",) for k in range(3)]
    with pytest.raises(UserError, match=r"\.old"):
        read(tmp_path)


@pytest.mark.parametrize(("ending", "mode"), [("tar", "w"), ("tar.gz", "w:gz"), ("tgz", "w:gz")])
def test_shards_of_a_folder_may_be_compressed_and_made_on_a_mac(tmp_path, ending, mode):
    content = {}
    for name, data in members().items():
        content |= {f"._{name}": b"Mac OS X resource fork", name: data, f"__MACOSX/{name}": data}
    archive(tmp_path / f"0.{ending}", content, mode)
    assert read(tmp_path) == (CIRCLES, [])


@pytest.mark.parametrize("ending", ["tar", "tar.gz"])
@pytest.mark.parametrize("name", ["{}", "{1}"])
def test_an_unsorted_archive_is_refused_with_the_command_that_sorts_it(tmp_path, ending, name):
    """Next to one that is sorted; the setting stays what it is, a folder or a file."""
    folder, content = tmp_path / "my data", members()
    mode = "w:gz" if ending == "tar.gz" else "w"
    unsorted = {n: content[n] for n in sorted(content, key=lambda n: n.rpartition(".")[2])}
    file = archive(folder / f"1.{ending}", unsorted, mode)
    if name == "{}":
        archive(folder / f"0.{ending}", {"9.png": png(9), "9.txt": b"circle 9"}, mode)
    data = folder if name == "{}" else file
    with pytest.raises(UserError, match=r"1\.tar.* is not sorted") as output:
        read(data)
    command = str(output.value).partition("Sort it: ")[2]
    subprocess.run(["bash", "-c", command], check=True, env={**os.environ, "TMPDIR": str(tmp_path)})
    assert read(data) == (CIRCLES | ({"9": "circle 9"} if name == "{}" else {}), [])
    with pytest.raises(UserError, match="is not sorted"):  # it is kept
        read(file.with_name(f"{file.name}.unsorted").rename(tmp_path / file.name))
    assert ending == "tar" or file.read_bytes()[:2] == b"\x1f\x8b"  # compressed as its name says


@pytest.mark.parametrize("shards", [1, 2])
def test_names_with_dots_in_an_archive_are_refused_with_webdatasets_rule_and_the_command_that_unpacks_them(
    tmp_path, shards
):
    folder = tmp_path / "my data"
    for shard in range(shards):
        names = [f"IMG_2024.05.{3 * shard + k}" for k in range(3)]
        content = {f"{n}.{e}": png(7) if e == "png" else f"this is {n}".encode() for n in names for e in ("png", "txt")}
        archive(folder / "sub" / f"{shard}.tar", content)
    with pytest.raises(UserError, match="a sample's name goes up to the first dot") as output:
        read(folder)
    command, setting = re.search(r"counts: (.*) and set data=(.*); if", str(output.value)).groups()
    subprocess.run(["bash", "-c", command], check=True)
    result = [s for part in source_for(DistillConfig(data=shlex.split(setting)[0]), 32).parts for s in part.read(0)]
    assert [s.captions for s in result] == [(f"this is IMG_2024.05.{k}",) for k in range(3 * shards)]


def test_every_shard_that_is_damaged_is_named_at_once_and_what_a_sample_holds_besides_is_told(tmp_path):
    for k in range(3):
        archive(tmp_path / f"{k}.tar.gz", {f"{k}{n}": c for n, c in members(("png", "txt")).items()}, "w:gz")
    whole = (tmp_path / "0.tar.gz").read_bytes()
    (tmp_path / "1.tar.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "2.tar.gz").write_bytes(whole[:-6] + bytes([whole[-6] ^ 255]) + whole[-5:])  # its sum
    with pytest.raises(
        UserError, match=r"1\.tar\.gz is not a complete tar.*Of 3 shards 1 more cannot be used: 2\.tar\.gz"
    ):
        read(tmp_path)
    for k in (1, 2):
        (tmp_path / f"{k}.tar.gz").unlink()
    archive(tmp_path / "0.tar.gz", members() | {"2.mask.png": png(1), "2.2.txt": b"x"}, "w:gz")
    assert read(tmp_path) == (CIRCLES, [])
    assert "left out of every sample: 2.txt, mask.png" in describe_data(DistillConfig(data=str(tmp_path)))


def test_a_link_to_the_folder_itself_is_gone_through_once(tmp_path):
    """Symptom: 6 pictures became 246, and two links never ended."""
    for name in ("loop", "again"):
        os.symlink(pictures(tmp_path), tmp_path / name)
    assert read(tmp_path) == (CIRCLES, [])


def test_what_cannot_be_opened_is_one_broken_picture(tmp_path):
    os.symlink(tmp_path / "nowhere.png", pictures(tmp_path) / "9.png")
    (tmp_path / "9.txt").write_text("nothing")
    Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.png")).write_bytes(png(1))
    good, bad = read(tmp_path)
    assert good == CIRCLES and len(bad) == 2


def test_sixteen_bits_are_scaled_and_fractions_are_broken(tmp_path):
    """Symptom: 16-bit grey was clipped to white."""
    Image.fromarray(np.full((32, 32), 60 * 257, np.uint16)).save(tmp_path / "0.png")
    Image.fromarray(np.full((32, 32), 0.3, np.float32)).save(tmp_path / "1.tiff")
    for k in range(2):
        (tmp_path / f"{k}.txt").write_text(f"circle {k}")
    samples = [s for part in source_for(DistillConfig(data=str(tmp_path)), 32).parts for s in part.read(0)]
    grey = next(s for s in samples if "0.png" in s.key)
    assert abs(np.asarray(upright(grey.image()).convert("L")).mean() - 60) <= 1
    assert read(tmp_path)[0] == {"0": "circle 0"} and "fractions" in read(tmp_path)[1][0]


@pytest.mark.skipif(not features.check("avif"), reason="this Pillow has no AVIF")
def test_avif_is_read(tmp_path):
    for k in range(3):
        Image.new("RGB", (32, 32), (20 * k, 9, 9)).save(tmp_path / f"{k}.avif")
        (tmp_path / f"{k}.txt").write_text(f"circle {k}")
    assert read(tmp_path) == (CIRCLES, [])


def test_data_are_told_by_content_and_not_by_time(tmp_path):
    def identity() -> str:
        return source_for(DistillConfig(data=str(tmp_path)), 32).identity["content"]

    pictures(tmp_path)
    before, stamp = identity(), (tmp_path / "1.png").stat()
    os.utime(tmp_path / "0.png", (1, 1))
    assert identity() == before
    painted = bytearray((tmp_path / "1.png").read_bytes())
    painted[-20] ^= 1  # of the same size and time
    (tmp_path / "1.png").write_bytes(painted)
    os.utime(tmp_path / "1.png", ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    assert identity() != before
