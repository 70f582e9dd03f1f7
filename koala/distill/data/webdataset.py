"""WebDataset shards: tar files in which the files of one sample are adjacent and share a name up to its first dot."""

import re
import shlex
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby, islice
from pathlib import Path

from koala.distill.config import DistillConfig
from koala.distill.data.columns import Columns, columns_of, inner, is_picture_column, parsed, sample_of
from koala.distill.data.files import SHARDS, Between, fingerprint, is_file, match, nothing, printable
from koala.distill.data.samples import Part, Sample, Source
from koala.errors import UserError

_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_LOOK = 16  # samples of the first shard that tell which files a sample has
_BLOCK = 1 << 20
_NAMED = 6  # names in an error

Samples = Iterator[tuple[tarfile.TarFile, str, list[tarfile.TarInfo]]]


def braces(pattern: str) -> list[str]:
    """path/{000..002}.tar -> its names, numbers as wide as the first; several ranges multiply."""
    span = _RANGE.search(pattern)
    if not span:
        return [pattern]
    first, last = span.groups()
    names = [f"{n:0{len(first)}}" for n in range(int(first), int(last) + 1)]
    return [pattern[: span.start()] + name + rest for name in names for rest in braces(pattern[span.end() :])]


def webdataset_source(config: DistillConfig, shards: Sequence[Path], base: Path, between: Between = nothing) -> Source:
    """Every sample of the shards; a part is a shard. UserError for a missing shard, column or picture."""
    for shard in shards:
        between()
        if not is_file(shard):
            raise UserError(f"there is no shard {shard}; {config.data} names {len(shards)} of them")
    columns, others = _columns(config, shards, base, between)
    parts = [
        Part(name=f"shard-{number:05}", count=count, read=partial(_read, columns, shard))
        for number, (shard, count) in enumerate(zip(shards, _counts(shards, between), strict=True))
    ]

    def identity() -> dict:
        return {
            "kind": "webdataset",
            "content": fingerprint(shards, base, between).digest,
            "image": columns.image,
            "captions": columns.captions,
        }

    about = f"pictures: {columns.image}, captions: {columns.names}"
    if others:
        about += f"; left out of every sample: {', '.join(others[:_NAMED])}{' and others' if others[_NAMED:] else ''}"
    return Source(identify=identity, parts=tuple(parts), about=about, used=list(shards))


def _columns(config: DistillConfig, shards: Sequence[Path], base: Path, between: Between) -> tuple[Columns, list[str]]:
    """Those that are used and those that are left out, by the first samples of the first shard that has any."""
    for shard in shards:
        try:
            with _samples(shard) as samples:
                rows = [_row(opened, members) for opened, _, members in islice(samples, _LOOK)]
        except UserError:
            _counts(shards, between)  # names all that are damaged
            raise
        if rows:
            columns = sorted({column for row in rows for column in row})
            pictures = [name for name in columns if is_picture_column(name, config.image_column)]
            if match(config.image_column, columns) is None and len([name for name in pictures if "." in name]) > 1:
                raise UserError(_dotted(shards, pictures, base))
            rule = (
                "; what follows the first dot of a name is the column" if any("." in name for name in columns) else ""
            )
            chosen = columns_of(columns, config, {field for row in rows for field in inner(row)}, rule)
            used = {chosen.image, *(name for _, name in chosen.captions)}
            inside = not used <= set(columns)  # the fields of a json
            return chosen, [name for name in columns if name not in used and not (inside and name == "json")]
    raise UserError(f"{config.data} holds no samples")


def _counts(shards: Sequence[Path], between: Between) -> list[int]:
    """How many samples each shard holds. UserError that names every shard which cannot be used."""
    counts, wrong = [], []
    for shard in shards:
        try:
            counts.append(_count(shard, between))
        except UserError as error:
            wrong.append((shard, error))
    if len(wrong) > 1:
        others = [shard.name for shard, _ in wrong[1:]]
        named = ", ".join(others[:_NAMED]) + (" and others" if len(others) > _NAMED else "")
        raise UserError(f"{wrong[0][1]}. Of {len(shards):,} shards {len(others):,} more cannot be used: {named}")
    if wrong:
        raise wrong[0][1]
    return counts


def _dotted(shards: Sequence[Path], pictures: Sequence[str], base: Path) -> str:
    """What is wrong with pictures whose own names contain dots, and what to type so that they are read."""
    folder = shlex.quote(f"{shards[0]}.unpacked" if len(shards) == 1 else str(base / "unpacked"))
    listed = ", ".join(pictures[:_NAMED]) + (" and others" if len(pictures) > _NAMED else "")
    unpack = f"tar -xf {shlex.quote(str(shards[0]))} -C {folder}"
    if len(shards) > 1:
        kind = next(name for name in SHARDS if shards[0].name.lower().endswith(name))
        unpack = f"find {shlex.quote(str(base))} -iname '*.{kind}' -exec tar -xf {{}} -C {folder} \\;"
    return (
        f"{shards[0]} has {len(pictures)} columns of pictures: {listed}. By WebDataset's rule a sample's name goes up "
        "to the first dot, and what follows is the column. If these are not columns but pictures whose own names "
        f"contain dots, unpack them, since in a folder the last dot counts: mkdir {folder} && {unpack} and set "
        f"data={folder}; if they are columns, set image_column to one of them"
    )


def _count(shard: Path, between: Between) -> int:
    """How many samples a shard holds. UserError where it is cut off, or the files of a sample are apart."""
    seen: dict[str, frozenset[str]] = {}
    kinds: dict[frozenset[str], frozenset[str]] = {}  # samples have the same few: kept once
    number = 0
    with _samples(shard) as samples:
        for opened, key, members in samples:
            between()
            archive = opened
            columns = frozenset(_column(member) for member in members)
            if key in seen and seen[key].isdisjoint(columns):
                name = shlex.quote(str(shard))
                raise UserError(
                    f"{shard} is not sorted: {printable(key)}.{'/'.join(sorted(seen[key]))} and "
                    f"{printable(key)}.{'/'.join(sorted(columns))} are apart, and the files of a sample must be next "
                    f"to each other. Sort it: d=$(mktemp -d) && tar -xf {name} -C $d && mv {name} {name}.unsorted && "
                    f"tar -caf {name} --sort=name -C $d ."
                )
            columns |= seen.get(key, columns)
            seen[key] = kinds.setdefault(columns, columns)
            number += 1
        if number and shard.suffix.lower() != ".tar":
            while archive.fileobj.read(_BLOCK):  # the checksum at the end shows whether it is complete
                between()
    return number


def _read(columns: Columns, shard: Path, start: int) -> Iterator[Sample]:
    with _samples(shard) as samples:
        for opened, key, members in islice(samples, start, None):
            row = _row(opened, members, columns)
            yield sample_of(row, f"{shard.name}/{key}", columns, shard.parent)


@contextmanager
def _samples(shard: Path) -> Iterator[Samples]:
    """The opened shard, and of every sample the name and files; what a file holds is read by `_row` alone.

    Hidden files are left out: macOS puts a ._1.png next to every 1.png.
    """

    def name(member: tarfile.TarInfo) -> str:
        folder, slash, file = member.name.rpartition("/")
        return folder + slash + file.partition(".")[0]

    def counts(member: tarfile.TarInfo) -> bool:
        folder, _, file = member.name.rpartition("/")
        return member.isfile() and not file.startswith(".") and "__MACOSX" not in folder.split("/")

    try:
        with tarfile.open(shard) as opened:
            members = (member for member in opened if counts(member))
            yield ((opened, key, list(group)) for key, group in groupby(members, name))
    except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
        raise UserError(f"{shard} is not a complete tar file: {error}; get it again, or leave it out") from error


def _column(member: tarfile.TarInfo) -> str:
    return member.name.rpartition("/")[2].partition(".")[2].lower()


def _row(
    opened: tarfile.TarFile, members: Sequence[tarfile.TarInfo], columns: Columns | None = None
) -> dict[str, object]:
    """Column -> content: json as what it says, anything else as bytes; all columns, or those that `columns` needs."""
    row = {}
    for member in members:
        column = _column(member)
        if columns and not is_picture_column(column, columns.image) and column not in _caption_fields(columns):
            continue
        content = opened.extractfile(member).read()
        row[column] = parsed(content) if column == "json" else content
    return row


def _caption_fields(columns: Columns) -> set[str]:
    return {"json", *(name for _, name in columns.captions)}
