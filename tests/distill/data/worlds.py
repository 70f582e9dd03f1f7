"""Small data sets on disk: one picture per colour, in every form that a source reads."""

import io
import json
import tarfile
from pathlib import Path

import pyarrow as pa
from PIL import Image
from pyarrow import parquet

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
