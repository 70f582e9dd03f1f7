"""A folder of pictures: captions in files of the same name, or in metadata.jsonl or metadata.csv."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

from koala.distill.config import DistillConfig
from koala.distill.data.beside import Beside, captions_beside, counts
from koala.distill.data.captions import Columns
from koala.distill.data.content import NOTHING, Absent, fingerprint
from koala.distill.data.files import Between, ending, is_file, is_printable, is_shard, nothing, printable
from koala.distill.data.metadata import Stray, Told, read_tables, tables_of
from koala.distill.data.pictures import open_picture
from koala.distill.data.samples import Part, Sample, Source, no_picture
from koala.errors import UserError
from koala.files.read_text import NotText
from koala.words import many

PART = 256


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """The pictures of a folder, with all of its files; what is told of them is looked for once it is needed."""

    folder: Path
    pictures: list[Path]
    files: list[Path]

    @cached_property
    def tables(self) -> list[Path]:
        """metadata.jsonl and metadata.csv, of a folder the one that counts."""
        return tables_of(self.files)

    @cached_property
    def beside(self) -> Beside:
        """The files beside those pictures that no table governs."""
        own, told = set(self.pictures), Told(used=self.tables)
        free = [picture for picture in self.pictures if not told.governs(picture)] if self.tables else self.pictures
        others = (f for f in self.files if f not in own and not is_shard(f) and ending(f) != "parquet")
        return Beside(free, [file for file in others if is_printable(str(file))])

    def described(self, names: Sequence[str] | None = None) -> str:
        """How many there are, and with which captions; `names` are those that are learned."""
        count, there = len(self.pictures), self.beside.endings
        with_files = counts(there, there if names is None else names, count)
        tables = ", ".join(sorted({table.name for table in self.tables}))
        return f"{many(count, 'picture')}{with_files}" + (
            f"{',' if with_files else ''} with {tables}" if tables else ""
        )

    def source(self, config: DistillConfig, between: Between = nothing, absent: Absent = NOTHING) -> Source:
        """Every picture with its captions. UserError where none has any."""
        told = Told(used=[])
        if self.tables:
            told = read_tables(config, self.tables, self.pictures, self.folder, between, absent.unlisted)
        free = [p for p in self.pictures if not told.governs(p)] if self.tables else self.pictures
        columns = self._columns(config) if free else Columns(captions=())
        files = self.beside.used(columns) if free else {}
        parts = [
            Part(
                name=f"pictures-{first:07}",
                count=len(some),
                read=partial(self._read, some, told, files, columns),
            )
            for first in range(0, len(self.pictures), PART)
            if (some := self.pictures[first : first + PART])
        ]
        parts += [
            Part(name=f"lines-{first:07}", count=len(some), read=partial(_lines, some))
            for first in range(0, len(told.strays), PART)
            if (some := told.strays[first : first + PART])
        ]
        used = [file for found in files.values() for file in found.values()]

        def identity() -> dict:
            files = [*self.pictures, *sorted(used), *self.tables]
            content = fingerprint(files, self.folder, between, absent.missing)
            found = {"kind": "folder", "content": content.digest, "captions": [*columns.captions, *told.names]}
            return found | content.out_of_reach | ({"unlisted": told.unlisted} if told.unlisted else {})

        return Source(identify=identity, parts=tuple(parts), about=self._about(columns, told), used=used + self.tables)

    def _columns(self, config: DistillConfig) -> Columns:
        try:
            return self.beside.columns(config)
        except UserError:
            if not self.tables:
                raise
            return Columns(captions=())  # some pictures are in a table: the others are counted as without

    def _about(self, columns: Columns, told: Told) -> str:
        names = list(dict.fromkeys([*told.names, *(name for _, name in columns.captions)]))
        bad = len(told.strays) + len(told.faults)
        return f"captions: {' and '.join(names)}" + (f"; {many(bad, 'bad line')}" if bad else "")

    def _read(
        self, pictures: Sequence[Path], told: Told, files: dict[Path, dict[str, Path]], columns: Columns, start: int
    ) -> Iterator[Sample]:
        for file in pictures[start:]:
            name = str(file.relative_to(self.folder))
            captions, fault = told.captions.get(file, ()), told.faults.get(file, "")
            missing = not is_file(file)
            if missing:
                fault = "it is a link to no file, or no file at all"
            elif not is_printable(name):
                fault = "its name is not UTF-8; rename it"
            elif told.governs(file):
                fault = fault or ("" if captions else told.unnamed(file))
            else:
                try:
                    captions = captions_beside(files.get(file, {}), columns)
                except NotText as error:
                    fault = f"its caption in {error}"
            image = partial(open_picture, file, file)
            yield Sample(key=printable(name), captions=captions, image=image, fault=fault, out_of_reach=missing)


def _lines(strays: Sequence[Stray], start: int) -> Iterator[Sample]:
    """Lines of a table that are no picture's, each counted as a broken one."""
    for stray in strays[start:]:
        missing = bool(stray.name)
        yield Sample(key=stray.where, captions=(), image=no_picture, fault=stray.fault, out_of_reach=missing)
