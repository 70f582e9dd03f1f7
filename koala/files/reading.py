"""Reading JSON files that may be foreign or damaged; an error names the file and the remedy."""

import codecs
import json
import re
from pathlib import Path

from koala.errors import UserError
from koala.words import megabytes

_MARKS = (  # the longer ones first: UTF-32's begins as UTF-16's does
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_HALF = re.compile("[\ud800-\udfff]")  # of a surrogate pair: JSON can say it, no encoder of text takes it
_ENDS = re.compile("\r\n|\n|\r")  # str.splitlines would also cut at characters that a caption may hold


class NotText(ValueError):
    """Bytes that are not text in an encoding that can be identified with certainty; the message says what to do."""


def decode(content: bytes) -> str:
    """Bytes -> text without its byte-order mark, lines ending in \\n. NotText for anything that would be a guess."""
    for mark, name in _MARKS:
        if content.startswith(mark):
            content, encoding = content[len(mark) :], name
            break
    else:
        encoding = "utf-8"
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-8":
            byte = f"byte 0x{content[error.start]:02x} at {error.start:,}"
            raise NotText(f"is not UTF-8 ({byte}; perhaps Latin-1 or Windows-1252): save it as UTF-8") from error
        raise NotText(f"is damaged {encoding[:6].upper()} ({error.reason}): save it as UTF-8") from error
    return checked(_ENDS.sub("\n", text))


def checked(text: str) -> str:
    """The text itself. NotText where it holds a NUL or a lone surrogate."""
    if "\0" in text:
        raise NotText("holds NUL characters, as UTF-16 without its byte-order mark does: save it as UTF-8")
    if _HALF.search(text):
        raise NotText("holds half a character, which is not text: write it again")
    return text


def read_text(file: Path) -> str:
    """The text of a file, as `decode`. OSError where it cannot be read."""
    return decode(file.read_bytes())


def read_lines(file: Path) -> list[str | NotText]:
    """The lines of a file without their ends; where the file as a whole is not text, each line or why it is not."""
    content = file.read_bytes()
    try:
        return decode(content).split("\n")
    except NotText:
        if content.startswith(tuple(mark for mark, name in _MARKS if name != "utf-8")) or b"\0" in content:
            raise  # its lines cannot be separated
    lines: list[str | NotText] = []
    for line in re.split(b"\r\n|\n|\r", content):
        try:
            lines.append(decode(line))
        except NotText as error:
            lines.append(error)
    return lines


LARGEST = 100_000_000  # bytes of a file; a tokenizer's vocabulary, the largest that we read, has about 3 MB


def read_json(file: Path, remedy: str = "copy the file again") -> object:
    """The content of a JSON file in UTF-8 or UTF-16, with or without a byte-order mark.

    UserError names the file, what is wrong with it and the remedy: it is missing, a folder, locked, larger than
    LARGEST, not text, cut off, not JSON, or nested too deeply to be read.
    """
    try:
        size = file.stat().st_size
        if size > LARGEST:
            raise UserError(f"{file} has {megabytes(size, 0)}, far too much for such a file; {remedy}")
        return json.loads(read_text(file))
    except FileNotFoundError as error:
        raise UserError(f"{file} is missing; {remedy}") from error
    except OSError as error:
        raise UserError(f"{file} cannot be read ({error.strerror or error}); {remedy}") from error
    except UserError:
        raise
    except RecursionError as error:
        raise UserError(f"{file} is damaged: it is nested too deeply; {remedy}") from error
    except ValueError as error:  # not text, or not JSON
        raise UserError(f"{file} is damaged: {error}; {remedy}") from error


def read_object(file: Path, remedy: str = "copy the file again") -> dict:
    """The JSON object that a file holds; UserError also where it holds something else."""
    content = read_json(file, remedy)
    if not isinstance(content, dict):
        raise UserError(f"{file} is damaged: it holds a {type(content).__name__}, not an object of names; {remedy}")
    return content
