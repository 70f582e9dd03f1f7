"""WebDataset shards: tar files in which the files of one sample lie together and share a name up to its first dot."""

import json
import re
import tarfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby, islice
from pathlib import Path

from koala.distill.config import DistillConfig
from koala.distill.data.files import Between, fingerprint, nothing
from koala.distill.data.rows import PICTURES, check_columns, inner, sample_of
from koala.distill.data.samples import Part, Sample, Source, caption_fields
from koala.request import RequestError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LOOK = 16  # samples of the first shard that tell which files a sample has


def braces(pattern: str) -> list[str]:
    """path/{000..002}.tar -> its names, numbers as wide as the first; several ranges multiply."""
    found = _RANGE.search(pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    names = [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
    return [pattern[: found.start()] + name + rest for name in names for rest in braces(pattern[found.end() :])]


def webdataset_source(config: DistillConfig, shards: Sequence[Path], between: Between = nothing) -> Source:
    """Every sample of the shards; a part is a shard. RequestError for a missing shard, column or picture."""
    for shard in shards:
        between()
        if not shard.is_file():
            raise RequestError(f"there is no shard {shard}; {config.data} names {len(shards)} of them")
    _check(config, shards)
    parts, left = [], config.num_pictures
    for number, shard in enumerate(shards):
        count = None
        if config.num_pictures:
            if left <= 0:
                break
            with _samples(shard) as samples:
                count = 0
                for _ in samples:  # a shard without an index is read to its end to count them
                    between()
                    count += 1
            left -= count
        parts.append(Part(name=f"shard-{number:05}", count=count, read=partial(_read, config, shard)))
    identity = {
        "kind": "webdataset",
        "content": fingerprint(shards, shards[0].parent, between),
        "image": config.image_column,
        "captions": caption_fields(config),
    }
    return Source(identity=identity, parts=tuple(parts))


def _check(config: DistillConfig, shards: Sequence[Path]) -> None:
    for shard in shards:
        with _samples(shard) as samples:
            rows = [_row(opened, members) for opened, _, members in islice(samples, _LOOK)]
        if rows:
            columns = {column for row in rows for column in row}
            check_columns(columns, config, {field for row in rows for field in inner(row)})
            return
    raise RequestError(f"{config.data} holds no samples")


def _read(config: DistillConfig, shard: Path, start: int) -> Iterator[Sample]:
    with _samples(shard) as samples:
        for opened, key, members in islice(samples, start, None):
            row = _row(opened, members)
            yield sample_of(row, f"{shard.name}/{key}", config, shard.parent)


@contextmanager
def _samples(shard: Path) -> Iterator[Iterator[tuple[tarfile.TarFile, str, list[tarfile.TarInfo]]]]:
    """The opened shard, and of every sample the name and files; what a file holds is read by `_row` alone."""

    def name(member: tarfile.TarInfo) -> str:
        folder, slash, file = member.name.rpartition("/")
        return folder + slash + file.partition(".")[0]

    try:
        with tarfile.open(shard) as opened:
            members = (member for member in opened if member.isfile() and not name(member).endswith("/"))
            yield ((opened, key, list(group)) for key, group in groupby(members, name))
    except (tarfile.TarError, EOFError) as error:
        raise RequestError(f"{shard} is no whole tar file: {error}") from error


def _row(opened: tarfile.TarFile, members: Sequence[tarfile.TarInfo]) -> dict[str, object]:
    """Ending -> content: pictures as bytes, json as what it says, anything else as text."""
    row = {}
    for member in members:
        column = member.name.rpartition("/")[2].partition(".")[2].lower()
        content = opened.extractfile(member).read()
        if column in PICTURES:
            row[column] = content
        elif column == "json":
            try:
                row[column] = json.loads(content)
            except (ValueError, RecursionError):
                continue  # then the sample lacks what it would have said
        else:
            row[column] = content.decode(errors="replace")
    return row
