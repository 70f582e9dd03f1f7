"""A data set of the Hugging Face hub, streamed: only what is encoded is kept on the disk."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import datasets

from koala.distill.config import DistillConfig
from koala.distill.data.columns import Columns, columns_of, inner, sample_of
from koala.distill.data.files import Between, files_under, fingerprint, nothing
from koala.distill.data.samples import HUB, Part, Sample, Source
from koala.errors import UserError
from koala.words import many


def hub_source(config: DistillConfig, between: Between = nothing) -> Source:
    """Every row of hub:OWNER/NAME, also with /CONFIG and @REVISION; a part is a shard of the stream.

    UserError for a data set that does not exist or lacks a column; an OSError comes from the network.
    """
    address, _, revision = config.data.removeprefix(HUB).partition("@")
    name, subset = address, None
    folder = Path(address)  # `datasets` takes one in a data set's place
    if not folder.is_dir():
        if address.count("/") not in (1, 2):
            raise UserError(f"{config.data!r} names no data set; write hub:OWNER/NAME or hub:OWNER/NAME/CONFIG")
        owner, name, *subsets = address.split("/")
        name, subset = f"{owner}/{name}", next(iter(subsets), None)
    try:
        builder = datasets.load_dataset_builder(name, subset, revision=revision or None)
        stream = builder.as_streaming_dataset()
    except (datasets.exceptions.DatasetsError, FileNotFoundError, ValueError) as error:
        raise UserError(f"{config.data} cannot be streamed: {error}") from error
    split = "train" if "train" in stream else next(iter(stream))
    stream = stream[split]
    for column, feature in (stream.features or {}).items():
        if isinstance(feature, datasets.Image):  # decoded by Decoder, which counts broken ones
            stream = stream.cast_column(column, datasets.Image(decode=False))
    first = next(iter(stream), None)
    if first is None:
        raise UserError(f"{config.data} has no rows in its split {split!r}")
    columns = columns_of(first, config, inner(first))
    parts = [
        Part(name=f"shard-{index:05}", count=None, read=partial(_read, columns, stream, index))
        for index in range(stream.num_shards)
    ]

    def identity() -> dict:
        return {
            "kind": "hub",
            "name": name,
            "subset": subset or builder.config.name,
            "split": split,
            "content": fingerprint(files_under(folder, between), folder, between).digest
            if folder.is_dir()
            else builder.hash,  # its commit
            "image": columns.image,
            "captions": columns.captions,
        }

    about = (
        f"{config.data}: the split {split!r}, a stream of {many(stream.num_shards, 'shard')}; "
        f"pictures: {columns.image}, captions: {columns.names}"
    )
    return Source(identify=identity, parts=tuple(parts), about=about)


def _read(columns: Columns, stream: datasets.IterableDataset, index: int, start: int) -> Iterator[Sample]:
    shard = stream.shard(num_shards=stream.num_shards, index=index).skip(start)
    for number, row in enumerate(shard, start):
        yield sample_of(row, f"row {number} of shard {index}", columns, Path())
