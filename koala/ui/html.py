"""HTML from Jinja2 templates with autoescape on: whatever a visitor or a file wrote arrives as text.

A template is a file of macros in koala/ui/; `macros` gives them as functions:

    shown = macros("assets/widgets.html", duration=duration)
    shown.timing(rows)
"""

import re
from pathlib import Path
from types import ModuleType

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.ext import Extension

FOLDER = Path(__file__).parent


class OneLine(Extension):
    """A template's line breaks and indentation are for its reader; the page gets none of them.

    A space that the page needs at the end of a line is written as {{ " " }}.
    """

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        """The template's source as one line."""
        return re.sub(r"\s*\n\s*", "", source)


# A value that is missing is an error; None is written as "None", so a template tests for it.
ENVIRONMENT = Environment(
    loader=FileSystemLoader(FOLDER),
    autoescape=True,
    undefined=StrictUndefined,
    extensions=[OneLine],
)


def macros(file: str, **names: object) -> ModuleType:
    """The macros of a template in koala/ui/, as functions that return HTML; `names` are what they all may use.

    What a macro returns is markup: another macro shows it as it is. Adding plain text to it with + escapes the text.
    """
    return ENVIRONMENT.get_template(file, globals=names).module
