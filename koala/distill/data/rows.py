"""One row of a table or stream -> a sample: which column is the picture, which the captions."""

import http.client
import io
import urllib.request
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path

import fsspec
from PIL import Image

from koala.distill.config import DistillConfig
from koala.distill.data.samples import Sample, caption_fields
from koala.request import RequestError

PICTURES = ("jpg", "jpeg", "png", "webp", "bmp", "gif", "tif", "tiff")  # file endings
_TIMEOUT = 20.0  # s, for a picture behind an address


def image_column(columns: Collection[str], config: DistillConfig) -> str | None:
    """The column of the pictures: the config's, else the one that a file ending names, as WebDataset does."""
    return next((name for name in (config.image_column, *PICTURES) if name in columns), None)


def check_columns(columns: Collection[str], config: DistillConfig, inner: Collection[str] = ()) -> None:
    """RequestError where the pictures or one of the captions that are learned have no column.

    `inner` are the fields of a `json` column, where captions may be too.
    """
    there = ", ".join(sorted(columns))
    if image_column(columns, config) is None:
        raise RequestError(
            f"{config.data} has no column {config.image_column!r} of pictures; set image_column to one of: {there}"
        )
    fields = {*columns, *inner}
    check_captions(fields, config, f"there are: {', '.join(sorted(fields))}")


def check_captions(fields: Collection[str], config: DistillConfig, what_there_is: str) -> None:
    """RequestError where one of the captions that are learned is missing."""
    for style, field in caption_fields(config).items():
        if field not in fields:
            raise RequestError(
                f"{config.data} has no captions {field!r}; {what_there_is}. Set {style}_caption to one of them"
                + (", or captions to short or detailed alone" if config.captions == "mixed" else "")
            )


def inner(row: Mapping[str, object]) -> Mapping[str, object]:
    """The fields of a row's `json`, which WebDataset shards keep captions in."""
    found = row.get("json")
    return found if isinstance(found, Mapping) else {}


def sample_of(row: Mapping[str, object], key: str, config: DistillConfig, base: Path) -> Sample:
    """A row's sample; paths are relative to `base`."""
    column, fields = image_column(row, config), {**inner(row), **row}
    told = [fields.get(field) for field in caption_fields(config).values()]
    return Sample(key=key, captions=captions_of(told), image=partial(open_picture, row.get(column), base))


def captions_of(values: list[object]) -> tuple[str, ...]:
    """The texts among a row's captions, each a text, a list of texts or nothing."""
    listed = [text for value in values for text in (value if isinstance(value, list | tuple) else [value])]
    return tuple(text.strip() for text in listed if isinstance(text, str) and text.strip())


def open_picture(value: object, base: Path) -> Image.Image:
    """From bytes, a path, an address, or {"bytes", "path"} as `datasets` stores pictures."""
    if isinstance(value, Mapping):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, str) and "://" in value:
        value = _fetch(value)
    if isinstance(value, bytes):
        return Image.open(io.BytesIO(value))
    if isinstance(value, str) and value:
        return Image.open(base / value)
    raise ValueError("no picture" if not value else f"a {type(value).__name__} is no picture")


def _fetch(address: str) -> bytes:
    if not address.startswith(("http://", "https://")):
        with fsspec.open(address, "rb") as file:  # hf://, s3:// and the like
            return file.read()
    request = urllib.request.Request(address, headers={"User-Agent": "koala"})
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT) as answer:
            return answer.read()
    except http.client.HTTPException as error:
        raise OSError(f"{address}: {error or type(error).__name__}") from error
