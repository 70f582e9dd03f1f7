"""Captions of a folder's pictures from the tables in it; a table governs its own folder and those below."""

import os
import unicodedata
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from koala.distill.config import DistillConfig
from koala.distill.data.columns import Columns, caption_columns, captions_in, inner
from koala.distill.data.files import Between, Listing, is_file, match, name_below, printable, same, stem_of
from koala.distill.data.pictures import slashed
from koala.distill.data.tables import METADATA, Line, read_table
from koala.errors import UserError
from koala.files.fields import is_text
from koala.files.reading import NotText

_NAME = "file_name"  # the column that says which picture


@dataclass(frozen=True, kw_only=True)
class Stray:
    """A line of a table that belongs to no picture; `name` is the picture's that it names, if that one is missing."""

    where: str
    fault: str
    name: str = ""  # below the folder of the data, as names compare


@dataclass(kw_only=True)
class TableCaptions:
    """What the tables say."""

    used: list[Path]  # the tables
    captions: dict[Path, tuple[str, ...]] = field(default_factory=dict)  # by picture
    faults: dict[Path, str] = field(default_factory=dict)  # of pictures whose line cannot be used
    strays: list[Stray] = field(default_factory=list)
    names: list[str] = field(default_factory=list)  # the columns of the captions

    def governs(self, picture: Path) -> bool:
        """Whether a table is in the picture's folder or above it."""
        folders = {table.parent for table in self.used}
        return not folders.isdisjoint(picture.parents)

    @property
    def unlisted(self) -> list[str]:
        """The pictures that the tables name and that are not there."""
        return sorted({stray.name for stray in self.strays if stray.name})

    def unnamed(self, picture: Path) -> str:
        """What is wrong with a picture that no line names."""
        table = max((t for t in self.used if t.parent in picture.parents), key=lambda t: len(t.parts))
        return f"no line of {table.name} names it"


def tables_of(files: Sequence[Path]) -> list[Path]:
    """The tables among the files, one of a folder, the innermost first."""
    by_folder: dict[Path, dict[str, Path]] = {}
    for file in files:
        if (name := file.name.lower()) in METADATA and is_file(file):
            by_folder.setdefault(file.parent, {}).setdefault(name, file)
    chosen = [next(tables[name] for name in METADATA if name in tables) for tables in by_folder.values()]
    return sorted(chosen, key=lambda table: (-len(table.parts), table))


class _Pictures:
    """Pictures by the names that a table may have for them."""

    def __init__(self, pictures: Sequence[Path]):
        self.exact = {os.path.normpath(picture): picture for picture in pictures}
        self.loose: dict[str, Path] = {}
        for picture in pictures:
            self.loose.setdefault(loose(picture), picture)
        self.real: dict[str, Path] | None = None

    def find(self, name: str, folder: Path) -> Path | None:
        named = _named(name, folder)
        match = self.exact.get(str(named)) or self.loose.get(loose(named))
        if match is None and is_file(named):  # by a link
            if self.real is None:
                self.real = {os.path.realpath(picture): picture for picture in self.exact.values()}
            match = self.real.get(os.path.realpath(named))
        return match


def _named(name: str, folder: Path) -> Path:
    """The file that a table in this folder means, with slashes."""
    return Path(os.path.normpath(folder / slashed(name, folder)))


def loose(path: Path) -> str:
    """A picture's name as names compare: its ending in any case, accents composed or not."""
    return f"{stem_of(path)}.{same(path.suffix)}"


def unlisted(listing: Listing, names: Collection[str], folder: Path) -> Listing:
    """A folder's files without the pictures of these names, which were not there when a table first named them."""
    if not names:
        return listing
    return replace(listing, files=[f for f in listing.files if loose(Path(name_below(f, folder))) not in names])


def read_tables(
    config: DistillConfig,
    tables: Sequence[Path],
    pictures: Sequence[Path],
    folder: Path,
    between: Between,
    missing: Collection[str] = (),
) -> TableCaptions:
    """What the tables say of the pictures, of which those of the names `missing` count as such whatever there is.

    UserError where a table lacks a column that is learned.
    """
    in_tables, on_disk = TableCaptions(used=list(tables)), _Pictures(pictures)
    for table in tables:
        seen: dict[Path, list[str]] = {}
        lines = read_table(table)
        columns = _columns(config, table, lines)
        for name in (name for _, name in columns.captions if name not in in_tables.names):
            in_tables.names.append(name)
        for line in lines:
            between()
            where = printable(f"{os.path.relpath(table, folder)}, line {line.number}")
            name = line.values.get(columns.image)
            name = name.strip() if isinstance(name, str) else name
            picture = on_disk.find(name, table.parent) if is_text(name) and name else None
            captions, fault = _captions(line, columns)
            if picture is None:
                in_tables.strays.append(_stray(where, fault, name, table.parent, folder, missing))
            elif picture in in_tables.captions or picture in in_tables.faults:
                if picture in seen and captions:  # several lines for one picture are several captions
                    seen[picture] += captions
                    in_tables.captions[picture] = tuple(dict.fromkeys(seen[picture]))
                elif fault:
                    in_tables.strays.append(Stray(where=where, fault=fault))
            elif fault:
                in_tables.faults[picture] = f"{where}, {fault}"
            else:
                seen[picture] = list(captions)
                in_tables.captions[picture] = captions
    return in_tables


def _stray(where: str, fault: str, name: object, place: Path, folder: Path, missing: Collection[str]) -> Stray:
    named = ""
    if not fault and is_text(name) and name:
        file = _named(name, place)
        named = loose(Path(name_below(file, folder)))
        if is_file(file) and named not in missing:  # it is there, and no picture
            named = ""
    return Stray(where=where, fault=fault or _nameless(name), name=named)


def _nameless(name: object) -> str:
    if name is None or name == "":
        return f"has no {_NAME}"
    if not is_text(name):
        return f"has a {_NAME} that is not a name: {str(name)[:60]!r}"
    return f"names {unicodedata.normalize('NFC', name)!r}, and there is no such picture"


def _captions(line: Line, columns: Columns) -> tuple[tuple[str, ...], str]:
    if line.fault:
        return (), line.fault
    try:
        texts = captions_in(line.values, columns)
    except NotText as error:
        return (), str(error)
    return texts, "" if texts else "has no caption"


def _columns(config: DistillConfig, table: Path, lines: Sequence[Line]) -> Columns:
    names = list(dict.fromkeys(name for line in lines for name in line.values))
    if (named := match(_NAME, names)) is None:
        available = f"it has {', '.join(map(str, names))}" if names else "it has no columns"
        raise UserError(f"{table} has no column {_NAME}, which says which picture a line is for; {available}")
    fields = [name for name in names if name != named]
    inside = {name for line in lines for name in inner(line.values)}
    available = f"the columns of {table.name} are: {', '.join(sorted(names))}"
    return Columns(image=named, captions=caption_columns(fields, config, available, inside))
