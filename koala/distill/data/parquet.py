"""Parquet files, whose pictures are bytes, structs as `datasets` writes them, paths or addresses."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import pyarrow as pa
from pyarrow.parquet import ParquetFile

from koala.distill.config import DistillConfig
from koala.distill.data.files import Between, fingerprint, nothing
from koala.distill.data.rows import check_columns, image_column, sample_of
from koala.distill.data.samples import Part, Sample, Source, caption_fields
from koala.request import RequestError

_ROWS = 16  # decoded at once
_BUFFER = 1 << 22  # bytes; without it a row group is read whole


def _open(file: Path) -> ParquetFile:
    try:
        return ParquetFile(file, buffer_size=_BUFFER)
    except (pa.ArrowException, OSError) as error:
        raise RequestError(f"{file} cannot be read as parquet: {error}") from error


def parquet_source(config: DistillConfig, files: Sequence[Path], base: Path, between: Between = nothing) -> Source:
    """Every row of the files; a part is a row group. RequestError for a missing column or no rows."""
    parts = []
    for number, file in enumerate(files):
        between()
        with _open(file) as opened:
            check_columns(opened.schema_arrow.names, config)
            for group in range(opened.num_row_groups):
                parts.append(
                    Part(
                        name=f"file-{number:05}-{group:05}",
                        count=opened.metadata.row_group(group).num_rows,
                        read=partial(_read, config, file, group),
                    )
                )
    if not any(part.count for part in parts):
        raise RequestError(f"{config.data} has no rows")
    identity = {
        "kind": "parquet",
        "content": fingerprint(files, base, between),
        "image": config.image_column,
        "captions": caption_fields(config),
    }
    return Source(identity=identity, parts=tuple(parts))


def _read(config: DistillConfig, file: Path, group: int, start: int) -> Iterator[Sample]:
    with _open(file) as opened:
        image = image_column(opened.schema_arrow.names, config)
        columns = [image, *caption_fields(config).values()]
        number = 0
        try:
            for batch in opened.iter_batches(_ROWS, row_groups=[group], columns=columns):
                if number + len(batch) > start:
                    for index, row in enumerate(batch.to_pylist(), number):
                        if index >= start:
                            key = f"{file.name}, row {index} of group {group}"
                            yield sample_of(row, key, config, file.parent)
                number += len(batch)
        except (pa.ArrowException, OSError) as error:
            raise RequestError(f"{file} is damaged in row group {group}: {error}") from error
