"""Which columns or files hold the captions, and the texts in them."""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from koala.distill.config import DistillConfig
from koala.distill.data.files import match
from koala.distill.data.samples import caption_fields
from koala.errors import UserError
from koala.files.read_text import NotText, checked, decode

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
        """The captions' columns, for people."""
        return " and ".join(dict.fromkeys(name for _, name in self.captions))


def caption_columns(
    fields: Collection[str], config: DistillConfig, what_there_is: str, inside: Collection[str] = ()
) -> tuple[tuple[str, str], ...]:
    """Style and column of every caption that is learned, by the config or, where it says nothing, by what is usual.

    `inside` are the fields of `json` among the fields. UserError where one of the captions is missing.
    """
    wanted = caption_fields(config)
    everything = [*fields, *(name for name in inside if name not in fields)]
    found = {style: match(name, everything) for style, name in wanted.items()}
    other = [name for name in (config.short_caption, config.detailed_caption) if name not in _DEFAULTS]
    if not any(found.values()):
        other += _USUAL
    usual = next((name for name in (match(name, everything) for name in other) if name), None)
    found = {style: name or (usual if wanted[style] in _DEFAULTS else None) for style, name in found.items()}
    for style, name in found.items():
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
    return tuple((style, name) for style, name in found.items() if name)


def match_inside(style: str, names: Collection[str]) -> str | None:
    """Which field of a JSON object is the caption of this style."""
    return next((found for name in (f"{style}_caption", *_INSIDE) if (found := match(name, names))), None)


def fields_of(row: Mapping[str, object]) -> Mapping[str, object]:
    """A row's columns, and beside them the fields of its `json`."""
    return {**inner(row), **row}


def inner(row: Mapping[str, object]) -> Mapping[str, object]:
    """The fields of a row's `json`, in which captions may be."""
    found = row.get("json")
    if isinstance(found, str | bytes):
        found = parsed(found)
    return found if isinstance(found, Mapping) else {}


def parsed(content: str | bytes) -> object:
    """What JSON says; a NotText, to be raised by whoever needs it, where it cannot be read."""
    try:
        return json.loads(content if isinstance(content, str) else decode(content))
    except NotText as error:
        return error
    except (ValueError, RecursionError) as error:
        return NotText(f"is no JSON ({error})")


def captions_in(row: Mapping[str, object], columns: Columns) -> tuple[str, ...]:
    """The texts of a row's captions, each a text, a list of texts or nothing. NotText for one that is not readable."""
    fields, found = fields_of(row), []
    for style, name in columns.captions:
        value = fields.get(name)
        if name == "json" and isinstance(value, str | bytes):
            value = parsed(value)
        if isinstance(value, Mapping):
            value = value.get(match_inside(style, value))
        try:
            found += texts_of(value)
        except NotText as error:
            raise NotText(f"{name} {error}") from error
    if not found and isinstance(broken := row.get("json"), NotText):
        raise NotText(f"json {broken}")
    return tuple(dict.fromkeys(found))


def texts_of(value: object) -> list[str]:
    """One caption's texts, without blanks around them."""
    values: Sequence[object] = value if isinstance(value, list | tuple) else [value]
    found = []
    for one in values:
        if isinstance(one, NotText):
            raise one
        if isinstance(one, bytes | str):
            text = (decode(one) if isinstance(one, bytes) else checked(one)).strip()
            found += [text] if text else []
    return found
