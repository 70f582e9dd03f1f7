"""metadata.csv and metadata.jsonl: one line per picture, read line by line, so that a bad line costs only itself."""

import csv
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from koala.distill.data.files import ending
from koala.errors import UserError
from koala.files.fields import shown
from koala.files.reading import NotText, read_lines

METADATA = ("metadata.jsonl", "metadata.csv")  # as the imagefolder of `datasets` reads them; the first takes precedence
_OTHERS = {";": "semicolons", "\t": "tabs", "|": "vertical bars"}  # what else separates columns


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a table: its columns, or why it cannot be used."""

    number: int  # in the file, from 1
    values: dict[str, object]
    fault: str = ""


def read_table(file: Path) -> list[Line]:
    """The lines of a table below its header. UserError where the file as a whole cannot be read."""
    try:
        lines = read_lines(file)
    except NotText as error:
        raise UserError(f"{file} {error}") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error})") from error
    return list(_csv(file, lines) if ending(file) == "csv" else _jsonl(lines))


def _jsonl(lines: Sequence[str | NotText]) -> Iterator[Line]:
    for number, line in enumerate(lines, 1):
        if isinstance(line, NotText):
            yield Line(number=number, values={}, fault=str(line))
        elif line.strip():
            try:
                values = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Line(number=number, values={}, fault=f"is not JSON ({error})")
                continue
            if isinstance(values, dict):
                yield Line(number=number, values=values)
            else:
                yield Line(number=number, values={}, fault=f"is not an object of columns: {shown(values)}")


def _csv(file: Path, lines: Sequence[str | NotText]) -> Iterator[Line]:
    records = _records(lines)
    number, header = next(records, (1, []))
    if isinstance(header, NotText):
        raise UserError(f"{file}, line {number}, where the columns are named, {header}")
    header = [name.strip() for name in header]
    if len(header) == 1:
        for mark, name in _OTHERS.items():
            if mark in header[0]:
                raise UserError(
                    f"{file} separates its columns by {name}; separate them by commas, with every cell that holds a "
                    'comma in quotes ("a circle, red"), or write metadata.jsonl'
                )
    for number, cells in records:
        if isinstance(cells, NotText):
            yield Line(number=number, values={}, fault=str(cells))
            continue
        values = dict(zip(header, cells, strict=False))
        fault = ""
        if len(cells) != len(header):
            fault = f"holds {len(cells)} where the header names {len(header)} columns" + (
                '; a cell that holds a comma goes into quotes: "a circle, red"' if len(cells) > len(header) else ""
            )
        yield Line(number=number, values=values, fault=fault)


def _records(lines: Sequence[str | NotText]) -> Iterator[tuple[int, list[str] | NotText]]:
    """(line, cells) of every record; after a broken one, such as an open quote, the next line is tried."""
    at = 0

    def ahead() -> Iterator[str]:
        nonlocal at
        while at < len(lines):
            line = lines[at]
            at += 1
            if isinstance(line, NotText):
                raise line
            yield line + "\n"

    reader = csv.reader(ahead(), strict=True)
    while at < len(lines):
        first = at
        try:
            cells = next(reader, None)
        except NotText:
            if at > first + 1:  # within a quoted cell that began further up
                at, error = first + 1, NotText("opens a quote that is interrupted by a line that is not text")
            yield first + 1, error
            reader = csv.reader(ahead(), strict=True)
        except csv.Error as error:
            at = first + 1
            yield at, NotText(f"is not a line of a table ({error}); a quote within a cell is doubled")
            reader = csv.reader(ahead(), strict=True)
        else:
            if cells and any(cell.strip() for cell in cells):
                yield first + 1, cells
