"""Reading JSON files that may be foreign or damaged; an error names the file and the remedy."""

import json
from pathlib import Path

from koala.errors import UserError
from koala.files.read_text import read_text
from koala.words import megabytes

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
