"""A config as people write it: a JSON file, and `field=value` settings over it."""

import json
import typing
from collections.abc import Sequence
from pathlib import Path

from koala.distill.config import DistillConfig, typed
from koala.errors import UserError
from koala.files.reading import read_object


def read(file: Path | None, overrides: Sequence[str] = (), base: DistillConfig | None = None) -> DistillConfig:
    """`base`, replaced by the fields of a JSON file and then by `field=value` settings. UserError names the remedy."""
    values = base.to_dict() if base else {}
    if file:
        if not file.exists():
            raise UserError(f"there is no config {file}; recipes/full_scale holds some to start from")
        fields = read_object(file, "correct it, or write a new one")
        try:
            values |= typed(fields)
        except UserError as error:
            raise UserError(f"in {file}, {error}") from error
    given: dict[str, object] = {}
    for override in overrides:
        name, equals, text = override.partition("=")
        if not equals:
            raise UserError(f"{override!r} is not a setting; write field=value, for example batch_size=16")
        value = _spelled(name, text)
        values[name] = [*given.get(name, []), *value] if name in PROSE else value
        given[name] = values[name]
    try:
        return DistillConfig.from_dict(values)
    except UserError as error:
        if not file:
            raise
        raise UserError(f"in {file}{' and the settings over it' if overrides else ''}, {error}") from error


PROSE = ("validation_prompts",)  # lists whose entries may contain commas


def _spelled(name: str, text: str) -> object:
    """The value of `field=text`: words separated by commas, a prompt unchanged, anything else as JSON or plain text."""
    kind = typing.get_type_hints(DistillConfig).get(name)
    if typing.get_origin(kind) is tuple:
        if not text.startswith("["):
            return [t.strip() for t in ([text] if name in PROSE else text.split(",")) if t.strip()]
        try:
            return json.loads(text)
        except ValueError as error:
            remedy = f"write {name}={json.dumps([text])}" if name in PROSE else "or separate the words by commas alone"
            raise UserError(f"{name}={text} is not a JSON list: {error}; {remedy}") from error
    if kind is str:
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text
