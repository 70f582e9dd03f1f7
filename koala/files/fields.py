"""Fields of JSON objects, checked as they are read: an error names the field, the file and the remedy."""

import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from koala.errors import UserError

REQUIRED = object()  # default of a field that must be there


def shown(value: object) -> str:
    """A value for an error message: on one line, shortened to 60 characters."""
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


@dataclass(frozen=True, kw_only=True)
class Fields:
    """One object of a JSON file. Reading a field is checking it: UserError names file, field and remedy."""

    values: Mapping[str, object]
    file: str
    remedy: str = "copy the file again"
    inside: str = ""  # the path of this object in the file, "components.unet." for example

    def wrong(self, name: str, wanted: str) -> UserError:
        """The error for a field that is not what is wanted."""
        if name not in self.values:
            return UserError(f"{self.file} is damaged: it lacks {self.inside}{name}; {self.remedy}")
        value = shown(self.values[name])
        return UserError(f"{self.file} is damaged: its {self.inside}{name} is {value}, not {wanted}; {self.remedy}")

    def only(self, names: Collection[str]) -> None:
        """UserError for a field other than these."""
        for name in self.values:
            if name not in names:
                raise UserError(
                    f"{self.file} has a field that is not known here, {self.inside}{shown(name)}; {self.remedy}"
                )

    def _read(self, name: str, default: object, right: Callable[[object], bool], wanted: str) -> object:
        if name not in self.values and default is not REQUIRED:
            return default
        value = self.values.get(name, REQUIRED)
        if value is REQUIRED or not right(value):
            raise self.wrong(name, wanted)
        return value

    def whole(self, name: str, least: int, most: int, default: object = REQUIRED) -> int:
        """A whole number within these bounds."""
        wanted = f"a whole number from {least:,} to {most:,}"
        return self._read(name, default, lambda value: is_whole(value, least, most), wanted)

    def number(self, name: str, least: float, most: float, default: object = REQUIRED) -> float:
        """A finite number within these bounds."""

        def right(value: object) -> bool:
            return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= most

        return self._read(name, default, right, f"a number from {least:,g} to {most:,g}")

    def text(self, name: str, default: object = REQUIRED, *, of: Collection[str] = (), like: str = r"[^\x00-\x1f]*"):
        """A text on one line: one `of` these, or one that fits the pattern `like`."""
        wanted = f"one of {', '.join(of)}" if of else "a text"

        def right(value: object) -> bool:
            return is_text(value, like) and (not of or value in of)

        return self._read(name, default, right, wanted)

    def truth(self, name: str, default: object = REQUIRED) -> bool:
        """True or false."""
        return self._read(name, default, lambda value: isinstance(value, bool), "true or false")

    def each(self, name: str, right: Callable[[object], bool], wanted: str, default: object = REQUIRED) -> tuple:
        """A list of what is right, at most a thousand entries."""

        def all_right(values: object) -> bool:
            return isinstance(values, list | tuple) and len(values) <= 1000 and all(map(right, values))

        values = self._read(name, default, all_right, f"a list of {wanted}")
        return tuple(values) if isinstance(values, list) else values

    def object(self, name: str, default: object = REQUIRED) -> "Fields":
        """An object within this one."""
        inner = self._read(name, default, lambda inner: isinstance(inner, Mapping), "an object of names")
        return Fields(values=inner, file=self.file, remedy=self.remedy, inside=f"{self.inside}{name}.")

    def objects(self) -> "Iterator[tuple[str, Fields]]":
        """Every field as an object."""
        for name in self.values:
            yield name, self.object(name)


def is_whole(value: object, least: int, most: int) -> bool:
    """Whether a value is a whole number within these bounds."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def is_text(value: object, like: str = r"[^\x00-\x1f]*") -> bool:
    """Whether a value is text of this pattern, without half characters, which no file can hold."""
    return isinstance(value, str) and re.fullmatch(rf"(?![^\ud800-\udfff]*[\ud800-\udfff]){like}", value) is not None


def finite(value: object, largest: float) -> bool:
    """Whether every number of a JSON value is finite and not beyond `largest`."""
    if isinstance(value, Mapping):
        return all(finite(one, largest) for one in value.values())
    if isinstance(value, list | tuple):
        return all(finite(one, largest) for one in value)
    return not isinstance(value, int | float) or math.isfinite(value) and abs(value) <= largest
