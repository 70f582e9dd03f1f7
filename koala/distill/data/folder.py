"""A folder of pictures: captions in text files of the same name, or in metadata.jsonl or metadata.csv."""

import csv
import json
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

from koala.distill.config import DistillConfig
from koala.distill.data.files import Between, ending, files_under, fingerprint, nothing
from koala.distill.data.rows import PICTURES, captions_of, check_captions, open_picture
from koala.distill.data.samples import Part, Sample, Source, caption_fields
from koala.fields import is_text, shown
from koala.request import RequestError

PART = 256
METADATA = ("metadata.jsonl", "metadata.csv")  # as the imagefolder of `datasets` reads them
_NAME = "file_name"  # their column that says which picture

Captions = Callable[[Path], tuple[str, ...]]


def folder_source(config: DistillConfig, folder: Path, between: Between = nothing) -> Source:
    """Every picture under a folder. RequestError where there is none, or where none has captions."""
    files = files_under(folder, between)
    pictures = [file for file in files if ending(file) in PICTURES]
    if not pictures:
        raise RequestError(
            f"{folder} holds no pictures ({', '.join(PICTURES)}), no .parquet and no .tar file; "
            "give a folder that does, or data=shapes"
        )
    metadata = next((folder / name for name in METADATA if (folder / name).is_file()), None)
    if metadata:
        captions = _from_metadata(config, metadata)
        told_by = [metadata]
    else:
        captions, told_by = _from_text_files(config, files, pictures)
    parts = [
        Part(
            name=f"pictures-{first:07}",
            count=min(PART, len(pictures) - first),
            read=partial(_read, pictures[first : first + PART], captions, folder),
        )
        for first in range(0, len(pictures), PART)
    ]
    fields = caption_fields(config)
    content = fingerprint([*pictures, *told_by], folder, between)
    return Source(identity={"kind": "folder", "content": content, "captions": fields}, parts=tuple(parts))


def _read(pictures: Sequence[Path], captions: Captions, folder: Path, start: int) -> Iterator[Sample]:
    for file in pictures[start:]:
        name = file.relative_to(folder)
        yield Sample(key=str(name), captions=captions(file), image=partial(open_picture, str(name), folder))


def _from_metadata(config: DistillConfig, file: Path) -> Captions:
    """Captions out of the columns of a table with one line per picture."""
    with file.open(newline="", encoding="utf-8") as lines:
        try:
            rows = list(csv.DictReader(lines)) if ending(file) == "csv" else [json.loads(x) for x in lines if x.strip()]
        except (ValueError, RecursionError, csv.Error) as error:
            raise RequestError(f"{file} cannot be read: {error}; correct that line") from error
    if odd := next((row for row in rows if not isinstance(row, dict)), None):
        raise RequestError(f"{file} has a line that is no object of columns: {shown(odd)}; correct that line")
    columns = {column for row in rows for column in row}
    if _NAME not in columns:
        raise RequestError(f"{file} has no column {_NAME}, which says whose line it is; it has {', '.join(columns)}")
    check_captions(columns, config, f"the columns of {file.name} are: {', '.join(sorted(columns))}")
    fields = caption_fields(config).values()
    if odd := next((row for row in rows if not is_text(row.get(_NAME))), None):
        raise RequestError(f"{file} has a line whose {_NAME} is no name: {shown(odd)}; correct that line")
    told = {file.parent / row[_NAME]: captions_of([row.get(field) for field in fields]) for row in rows}
    return lambda picture: told.get(picture, ())


def _from_text_files(
    config: DistillConfig, files: Sequence[Path], pictures: Sequence[Path]
) -> tuple[Captions, list[Path]]:
    """Captions out of the files beside the pictures: a field names their ending, `txt` for picture.txt."""
    stems = {picture.with_suffix("") for picture in pictures}
    beside = [file for file in files if ending(file) not in PICTURES and file.with_suffix("") in stems]
    endings = {ending(file) for file in beside}
    there = f"beside the pictures lie {', '.join(f'.{e}' for e in sorted(endings))} files" if endings else (
        f"there is neither a text file beside any picture nor a {' or '.join(METADATA)}"
    )  # fmt: skip
    check_captions(endings, config, there)
    wanted = list(caption_fields(config).values())
    used = {file for file in beside if ending(file) in wanted}

    def captions(picture: Path) -> tuple[str, ...]:
        names = [picture.with_suffix(f".{field}") for field in wanted]
        return captions_of([name.read_text(encoding="utf-8", errors="replace") for name in names if name in used])

    return captions, sorted(used)
