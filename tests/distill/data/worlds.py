"""Small data sets on disk, one picture per colour, in every form that a source reads; and the caches made of them."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from koala.distill.config import DistillConfig
from koala.distill.data.cache import encode, find, try_again
from koala.distill.data.encoded import EncodedData

COLOURS = ("red", "green", "blue", "yellow", "black", "white")


def png(colour: str, size: tuple[int, int] = (64, 64)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def text_folder(folder: Path, colours=COLOURS) -> Path:
    folder.mkdir(parents=True)
    for number, colour in enumerate(colours):
        (folder / f"{number}.png").write_bytes(png(colour))
        (folder / f"{number}.txt").write_text(f"a {colour} picture\n")
    return folder


def parquet_file(file: Path, rows: list[dict], row_group_size: int = 4) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(rows), file, row_group_size=row_group_size)
    return file


def shard(file: Path, samples: dict[str, dict[str, bytes | dict]]) -> Path:
    """Sample name -> ending -> content; a dict becomes JSON."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as out:
        for name, files in samples.items():
            for ending, content in files.items():
                data = json.dumps(content).encode() if isinstance(content, dict) else content
                member = tarfile.TarInfo(f"{name}.{ending}")
                member.size = len(data)
                out.addfile(member, io.BytesIO(data))
    return file


def config(tmp_path, **values) -> DistillConfig:
    defaults = dict(cache=str(tmp_path / "cache"), resolution=128, num_pictures=12, validation_pictures=4)
    return DistillConfig(**defaults | values)


def set_config(tmp_path, data, **values) -> DistillConfig:
    """Of a small set on disk, at 64 px."""
    defaults = dict(data=str(data), resolution=64, num_pictures=0, validation_pictures=1, captions="short")
    return config(tmp_path, **defaults | {"short_caption": "txt"} | values)


def encoded(config: DistillConfig, encoders, **settings) -> EncodedData:
    """As a run of one process has it, one that goes on where `key` says from which data."""
    key = settings.pop("key", "")
    looks = {name: settings[name] for name in ("should_stop", "say") if name in settings}
    result = find(config, encoders, key=key, **looks)
    tries = 0 if key else try_again(result, encoders, device="cpu", **looks)
    return encode(result, encoders, device="cpu", tries=tries, **settings)


def folders(tmp_path) -> list[Path]:
    return sorted((tmp_path / "cache").iterdir())


def files(folder: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(folder.glob("*.safetensors"))}
