"""Parquet files, whose pictures are bytes, structs as `datasets` writes them, paths or addresses."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
from pyarrow.parquet import ParquetFile

from koala.distill.config import DistillConfig
from koala.distill.data.columns import Columns, columns_of, image_column, inner, sample_of
from koala.distill.data.files import NOTHING, Absent, Between, fingerprint, nothing, printable
from koala.distill.data.pictures import local_file
from koala.distill.data.samples import Part, Sample, Source, no_picture
from koala.errors import UserError

_ROWS = 16  # decoded at once
_BUFFER = 1 << 22  # bytes; without it a row group is read whole


def _open(file: Path) -> ParquetFile:
    try:
        return ParquetFile(file, buffer_size=_BUFFER)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{file} cannot be read as parquet: {error}") from error


def columns_in(file: Path) -> list[str]:
    """The columns of a table. UserError where it cannot be read."""
    with _open(file) as opened:
        return opened.schema_arrow.names


def has_pictures(file: Path, config: DistillConfig) -> bool:
    """Whether a table has a column of pictures. img2dataset writes one without pictures next to its shards."""
    return image_column(columns_in(file), config.image_column) is not None


def parquet_source(
    config: DistillConfig, files: Sequence[Path], base: Path, between: Between = nothing, absent: Absent = NOTHING
) -> Source:
    """Every row of the files; a part is a row group. UserError for a missing column or no rows."""
    parts, columns = [], None
    for number, file in enumerate(files):
        between()
        with _open(file) as opened:
            columns = columns_of(opened.schema_arrow.names, config, _inside(opened))
            for group in range(opened.num_row_groups):
                parts.append(
                    Part(
                        name=f"file-{number:05}-{group:05}",
                        count=opened.metadata.row_group(group).num_rows,
                        read=partial(_read, columns, file, group),
                    )
                )
    if not any(part.count for part in parts):
        raise UserError(f"{config.data} has no rows")

    def identity() -> dict:
        named = [picture for file in files for picture in _named(file, config, between)]
        content = fingerprint([*files, *named], base, between, absent.missing)
        return {
            "kind": "parquet",
            "content": content.digest,
            "image": columns.image,
            "captions": columns.captions,
        } | content.out_of_reach

    about = f"pictures: {columns.image}, captions: {columns.names}"
    return Source(identify=identity, parts=tuple(parts), about=about, used=list(files))


def _inside(opened: ParquetFile) -> set[str]:
    """The fields in a column `json`, by its first rows."""
    if "json" not in opened.schema_arrow.names:
        return set()
    try:
        rows = next(opened.iter_batches(_ROWS, columns=["json"])).to_pylist()
    except (StopIteration, pa.ArrowException, OSError, UnicodeDecodeError):
        return set()
    return {name for row in rows for name in inner(row)}


def _named(file: Path, config: DistillConfig, between: Between) -> Iterator[Path]:
    """The files of this machine that a table's pictures are in."""
    with _open(file) as opened:
        image = image_column(opened.schema_arrow.names, config.image_column)
        kind = opened.schema_arrow.field(image).type
        if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
            return
        for batch in _batches(opened, file, columns=[image]):
            between()
            for row in _rows(batch):
                value = row.get(image) if row else None
                if isinstance(value, Mapping):
                    value = None if value.get("bytes") else value.get("path")
                if isinstance(value, str) and value and (local := local_file(value, file.parent)):
                    yield local


def _batches(opened: ParquetFile, file: Path, **settings) -> Iterator[pa.RecordBatch]:
    try:
        yield from opened.iter_batches(_ROWS, **settings)
    except (pa.ArrowException, OSError) as error:
        groups = settings.get("row_groups")
        raise UserError(f"{file} is damaged{f' in row group {groups[0]}' if groups else ''}: {error}") from error


def _rows(batch: pa.RecordBatch) -> Iterator[dict | None]:
    """The rows of a batch; None for one with text that is not UTF-8, which parquet may hold."""
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:
        pass
    for index in range(len(batch)):
        try:
            yield batch.slice(index, 1).to_pylist()[0]
        except UnicodeDecodeError:
            yield None


def _read(columns: Columns, file: Path, group: int, start: int) -> Iterator[Sample]:
    with _open(file) as opened:
        names = opened.schema_arrow.names
        fields = {columns.image, *(name for _, name in columns.captions)}
        wanted = [name for name in names if name in fields or name == "json" and fields - set(names)]
        number = 0
        for batch in _batches(opened, file, row_groups=[group], columns=wanted):
            if number + len(batch) > start:
                for index, row in enumerate(_rows(batch), number):
                    if index >= start:
                        key = printable(f"{file.name}, row {index} of group {group}")
                        yield (
                            sample_of(row, key, columns, file.parent)
                            if row is not None
                            else Sample(key=key, captions=(), image=no_picture, fault="its text is not UTF-8")
                        )
            number += len(batch)
