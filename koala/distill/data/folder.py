"""A folder of pictures: captions in files of the same name, or in metadata.jsonl or metadata.csv.

Files are named as kohya, img2dataset and others do: 1.txt, 1.caption or 1.json for 1.png.
"""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice
from pathlib import Path

from koala.distill.config import DistillConfig
from koala.distill.data.columns import Columns, caption_columns, captions_in, inner, parsed
from koala.distill.data.files import (
    NOTHING,
    Absent,
    Between,
    composed,
    ending,
    fingerprint,
    is_file,
    is_printable,
    is_shard,
    nothing,
    printable,
    same,
    stem_of,
)
from koala.distill.data.metadata import Stray, TableCaptions, read_tables, tables_of
from koala.distill.data.pictures import open_picture
from koala.distill.data.samples import Part, Sample, Source, no_picture
from koala.distill.data.tables import METADATA
from koala.errors import UserError
from koala.files.reading import NotText
from koala.words import many

PART = 256
_LOOK = 16  # JSON files that are read to learn which fields they have


class CaptionFiles:
    """The files next to pictures that may hold their captions, by picture and ending."""

    def __init__(self, pictures: Sequence[Path], others: Sequence[Path]):
        self.files: dict[Path, dict[str, Path]] = {}
        by_name: dict[str, list[Path]] = {}
        for picture in pictures:
            by_name.setdefault(stem_of(picture), []).append(picture)
            by_name.setdefault(composed(picture), []).append(picture)  # 1.png.txt
        for file in others:
            for stem, end in _splits(file):
                for picture in by_name.get(stem, ()):
                    self.files.setdefault(picture, {}).setdefault(end, file)
                if stem in by_name:
                    break
        self.endings = Counter(end for files in self.files.values() for end in files)

    def columns(self, config: DistillConfig) -> Columns:
        """The endings, or fields of the JSON files, that hold the captions. UserError where there are none."""
        endings = sorted(self.endings)
        objects = [files["json"] for files in self.files.values() if "json" in files]
        inside = {name for file in islice(objects, _LOOK) for name in inner({"json": _read(file, "json")})}
        available = f"next to the pictures are {', '.join(f'.{e}' for e in endings)} files" if endings else (
            f"there is neither a text file next to any picture nor a {' or '.join(METADATA)}"
        )  # fmt: skip
        if further := sorted(inside - set(endings)):
            available += f", and in the .json files are {', '.join(further)}"
        return Columns(captions=caption_columns(endings, config, available, inside))

    def used(self, columns: Columns) -> dict[Path, dict[str, Path]]:
        """The files that hold each picture's captions, by ending."""
        wanted = {name for _, name in columns.captions}
        in_json = wanted - set(self.endings)
        return {
            picture: {e: file for e, file in files.items() if e in wanted or e == "json" and in_json}
            for picture, files in self.files.items()
        }


def captions_in_files(files: dict[str, Path], columns: Columns) -> tuple[str, ...]:
    """The captions in a picture's files. NotText where one of them is not readable."""
    return captions_in({ending: _read(file, ending) for ending, file in files.items()}, columns)


def _read(file: Path, ending: str) -> object:
    """The content of a file; a NotText for one that cannot be read."""
    if not is_file(file):
        return NotText("is a broken link or a pipe")
    try:
        content = file.read_bytes()
    except OSError as error:
        return NotText(f"cannot be read ({error.strerror or error})")
    return parsed(content) if ending == "json" else content


def _splits(file: Path) -> list[tuple[str, str]]:
    """a/1.caption.txt -> (a/1.caption, txt), (a/1, caption.txt): picture and ending that the name may mean."""
    pieces = file.name.split(".")
    cuts = range(len(pieces) - 1, 0, -1)
    return [(composed(file.parent / ".".join(pieces[:k])), same(".".join(pieces[k:]))) for k in cuts]


def counts(endings: Counter, names: Collection[str], pictures: int) -> str:
    """How many of the pictures have such files, in words."""
    shown = [name for name, _ in endings.most_common() if name in names]
    if not shown:
        return ""
    if all(endings[name] == pictures for name in shown):
        return f" with {' and '.join(f'.{name}' for name in shown)}"
    return ", " + " and ".join(f"{endings[name]:,} with .{name}" for name in shown)


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The pictures of a folder, with all of its files; captions are looked for once they are needed."""

    folder: Path
    pictures: list[Path]
    files: list[Path]

    @cached_property
    def tables(self) -> list[Path]:
        """metadata.jsonl or metadata.csv, whichever counts in each folder."""
        return tables_of(self.files)

    @cached_property
    def caption_files(self) -> CaptionFiles:
        """The files next to those pictures that no table governs."""
        own, in_tables = set(self.pictures), TableCaptions(used=self.tables)
        free = (
            [picture for picture in self.pictures if not in_tables.governs(picture)] if self.tables else self.pictures
        )
        others = (f for f in self.files if f not in own and not is_shard(f) and ending(f) != "parquet")
        return CaptionFiles(free, [file for file in others if is_printable(str(file))])

    def described(self, names: Sequence[str] | None = None) -> str:
        """How many there are, and with which captions; `names` are those that are learned."""
        count, endings = len(self.pictures), self.caption_files.endings
        with_files = counts(endings, endings if names is None else names, count)
        tables = ", ".join(sorted({table.name for table in self.tables}))
        return f"{many(count, 'picture')}{with_files}" + (
            f"{',' if with_files else ''} with {tables}" if tables else ""
        )

    def source(self, config: DistillConfig, between: Between = nothing, absent: Absent = NOTHING) -> Source:
        """Every picture with its captions. UserError where none has any."""
        in_tables = TableCaptions(used=[])
        if self.tables:
            in_tables = read_tables(config, self.tables, self.pictures, self.folder, between, absent.unlisted)
        free = [p for p in self.pictures if not in_tables.governs(p)] if self.tables else self.pictures
        columns = self._columns(config) if free else Columns(captions=())
        files = self.caption_files.used(columns) if free else {}
        parts = [
            Part(
                name=f"pictures-{first:07}",
                count=len(some),
                read=partial(self._read, some, in_tables, files, columns),
            )
            for first in range(0, len(self.pictures), PART)
            if (some := self.pictures[first : first + PART])
        ]
        parts += [
            Part(name=f"lines-{first:07}", count=len(some), read=partial(_lines, some))
            for first in range(0, len(in_tables.strays), PART)
            if (some := in_tables.strays[first : first + PART])
        ]
        used = [file for own in files.values() for file in own.values()]

        def identity() -> dict:
            files = [*self.pictures, *sorted(used), *self.tables]
            content = fingerprint(files, self.folder, between, absent.missing)
            known = {"kind": "folder", "content": content.digest, "captions": [*columns.captions, *in_tables.names]}
            return known | content.out_of_reach | ({"unlisted": in_tables.unlisted} if in_tables.unlisted else {})

        return Source(
            identify=identity, parts=tuple(parts), about=self._about(columns, in_tables), used=used + self.tables
        )

    def _columns(self, config: DistillConfig) -> Columns:
        try:
            return self.caption_files.columns(config)
        except UserError:
            if not self.tables:
                raise
            return Columns(captions=())  # some pictures are in a table: the others are counted as without

    def _about(self, columns: Columns, in_tables: TableCaptions) -> str:
        names = list(dict.fromkeys([*in_tables.names, *(name for _, name in columns.captions)]))
        bad = len(in_tables.strays) + len(in_tables.faults)
        return f"captions: {' and '.join(names)}" + (f"; {many(bad, 'bad line')}" if bad else "")

    def _read(
        self,
        pictures: Sequence[Path],
        in_tables: TableCaptions,
        files: dict[Path, dict[str, Path]],
        columns: Columns,
        start: int,
    ) -> Iterator[Sample]:
        for file in pictures[start:]:
            name = str(file.relative_to(self.folder))
            captions, fault = in_tables.captions.get(file, ()), in_tables.faults.get(file, "")
            missing = not is_file(file)
            if missing:
                fault = "it is a broken link, or not a file"
            elif not is_printable(name):
                fault = "its name is not UTF-8; rename it"
            elif in_tables.governs(file):
                fault = fault or ("" if captions else in_tables.unnamed(file))
            else:
                try:
                    captions = captions_in_files(files.get(file, {}), columns)
                except NotText as error:
                    fault = f"its caption in {error}"
            image = partial(open_picture, file, file)
            yield Sample(key=printable(name), captions=captions, image=image, fault=fault, out_of_reach=missing)


def _lines(strays: Sequence[Stray], start: int) -> Iterator[Sample]:
    """Lines of a table that belong to no picture, each counted as a broken sample."""
    for stray in strays[start:]:
        missing = bool(stray.name)
        yield Sample(key=stray.where, captions=(), image=no_picture, fault=stray.fault, out_of_reach=missing)
