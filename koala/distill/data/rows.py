"""One row of a table or stream -> a sample: which column is the picture, which the captions."""

from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

from koala.distill.config import DistillConfig
from koala.distill.data.captions import Columns, caption_columns, captions_in
from koala.distill.data.files import match, printable
from koala.distill.data.pictures import ENDINGS, open_picture
from koala.distill.data.samples import Sample
from koala.errors import UserError
from koala.files.read_text import NotText


def image_column(columns: Collection[str], name: str) -> str | None:
    """The column of the pictures: the config's, else the one that a file ending names, `jpg` or `image.jpg`."""
    if found := match(name, columns):
        return found
    if found := next((found for one in ENDINGS if (found := match(one, columns))), None):
        return found
    dotted = [column for column in columns if is_picture_column(column, name)]
    return dotted[0] if len(dotted) == 1 else None


def is_picture_column(column: str, name: str) -> bool:
    """Whether a column of files holds pictures: the config's `name` for them, or any name that ends as pictures do."""
    return match(name, [column]) is not None or column.rpartition(".")[2].lower() in ENDINGS


def columns_of(
    columns: Collection[str], config: DistillConfig, inside: Collection[str] = (), hint: str = ""
) -> Columns:
    """Where pictures and captions are; `inside` are the fields of a `json` column, where captions may be too.

    UserError where the pictures or one of the captions have no column.
    """
    there = ", ".join(sorted(columns))
    image = image_column(columns, config.image_column)
    if image is None:
        raise UserError(
            f"{config.data} has no column {config.image_column!r} of pictures; set image_column to one of: {there}"
            + hint
        )
    fields = sorted({*columns, *inside})
    told = caption_columns(fields, config, f"there are: {', '.join(fields)}{hint}", inside)
    return Columns(captions=told, image=image)


def sample_of(row: Mapping[str, object], key: str, columns: Columns, base: Path) -> Sample:
    """A row's sample; paths are relative to `base`."""
    told, fault = (), ""
    try:
        told = captions_in(row, columns)
    except NotText as error:
        fault = f"its caption {error}"
    picture = row.get(columns.image)
    if picture is None:  # a sample of another ending than the first ones
        picture = row.get(image_column(row, columns.image))
    return Sample(key=printable(key), captions=told, image=partial(open_picture, picture, base), fault=fault)
