"""Which column or file of a row holds the picture and which the captions; a row as a sample."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from koala.distill.config import DistillConfig
from koala.distill.data.files import match, printable
from koala.distill.data.pictures import ENDINGS, open_picture
from koala.distill.data.samples import Sample, caption_fields
from koala.errors import UserError
from koala.files.reading import NotText, checked, decode

_USUAL = ("txt", "caption", "text")  # what others call captions, the first that is there
_INSIDE = ("caption", "text", "txt", "prompt", "description")  # the same in a JSON object that is the caption
_DEFAULTS = (DistillConfig.short_caption, DistillConfig.detailed_caption)


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Where a row's picture and captions are."""

    captions: tuple[tuple[str, str], ...]  # style, column
    image: str = ""

    @property
    def names(self) -> str:
        """The captions' columns, in words."""
        return " and ".join(dict.fromkeys(name for _, name in self.captions))


def caption_columns(
    fields: Collection[str], config: DistillConfig, what_there_is: str, inside: Collection[str] = ()
) -> tuple[tuple[str, str], ...]:
    """Style and column of every caption that is learned: the config's or, where it has the default, a common one.

    `inside` are the fields of `json` among the fields. UserError where one of the captions is missing.
    """
    wanted = caption_fields(config)
    everything = [*fields, *(name for name in inside if name not in fields)]
    columns = {style: match(name, everything) for style, name in wanted.items()}
    candidates = [name for name in (config.short_caption, config.detailed_caption) if name not in _DEFAULTS]
    if not any(columns.values()):
        candidates += _USUAL
    usual = next((name for name in (match(name, everything) for name in candidates) if name), None)
    columns = {style: name or (usual if wanted[style] in _DEFAULTS else None) for style, name in columns.items()}
    for style, name in columns.items():
        if name is None:
            raise UserError(
                f"{config.data} has no captions {wanted[style]!r}; {what_there_is}. Set {style}_caption to one of them"
                + (", or captions to short or detailed alone" if config.captions == "mixed" else "")
            )
        if name == "json" and inside and not match_inside(style, inside):
            raise UserError(
                f"{config.data} has json with {', '.join(sorted(inside))}, and none of them is known to be a caption; "
                f"set {style}_caption to one of them"
            )
    return tuple((style, name) for style, name in columns.items() if name)


def match_inside(style: str, names: Collection[str]) -> str | None:
    """Which field of a JSON object is the caption of this style."""
    matches = (match(name, names) for name in (f"{style}_caption", *_INSIDE))
    return next(filter(None, matches), None)


def fields_of(row: Mapping[str, object]) -> Mapping[str, object]:
    """A row's columns, and the fields of its `json`."""
    return {**inner(row), **row}


def inner(row: Mapping[str, object]) -> Mapping[str, object]:
    """The fields of a row's `json`, in which captions may be."""
    value = row.get("json")
    if isinstance(value, str | bytes):
        value = parsed(value)
    return value if isinstance(value, Mapping) else {}


def parsed(content: str | bytes) -> object:
    """The value of a JSON text; where it cannot be read, a NotText for the caller to raise."""
    try:
        return json.loads(content if isinstance(content, str) else decode(content))
    except NotText as error:
        return error
    except (ValueError, RecursionError) as error:
        return NotText(f"is not JSON ({error})")


def captions_in(row: Mapping[str, object], columns: Columns) -> tuple[str, ...]:
    """The texts of a row's captions, each a text, a list of texts or nothing. NotText for one that is not readable."""
    fields, texts = fields_of(row), []
    for style, name in columns.captions:
        value = fields.get(name)
        if name == "json" and isinstance(value, str | bytes):
            value = parsed(value)
        if isinstance(value, Mapping):
            value = value.get(match_inside(style, value))
        try:
            texts += texts_of(value)
        except NotText as error:
            raise NotText(f"{name} {error}") from error
    if not texts and isinstance(broken := row.get("json"), NotText):
        raise NotText(f"json {broken}")
    return tuple(dict.fromkeys(texts))


def texts_of(value: object) -> list[str]:
    """One caption's texts, without blanks around them."""
    values: Sequence[object] = value if isinstance(value, list | tuple) else [value]
    texts = []
    for one in values:
        if isinstance(one, NotText):
            raise one
        if isinstance(one, bytes | str):
            text = (decode(one) if isinstance(one, bytes) else checked(one)).strip()
            texts += [text] if text else []
    return texts


def image_column(columns: Collection[str], name: str) -> str | None:
    """The column of the pictures: the config's, else the one that a file ending names, `jpg` or `image.jpg`."""
    for known in (name, *ENDINGS):
        if column := match(known, columns):
            return column
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
    names = ", ".join(sorted(columns))
    image = image_column(columns, config.image_column)
    if image is None:
        raise UserError(
            f"{config.data} has no column {config.image_column!r} of pictures; set image_column to one of: {names}"
            + hint
        )
    fields = sorted({*columns, *inside})
    caption_names = caption_columns(fields, config, f"there are: {', '.join(fields)}{hint}", inside)
    return Columns(captions=caption_names, image=image)


def sample_of(row: Mapping[str, object], key: str, columns: Columns, base: Path) -> Sample:
    """A row's sample; paths are relative to `base`."""
    captions, fault = (), ""
    try:
        captions = captions_in(row, columns)
    except NotText as error:
        fault = f"its caption {error}"
    picture = row.get(columns.image)
    if picture is None:  # a sample of another ending than the first ones
        picture = row.get(image_column(row, columns.image))
    return Sample(key=printable(key), captions=captions, image=partial(open_picture, picture, base), fault=fault)
