"""HTML from Jinja2 templates with autoescape on: whatever a visitor or a file wrote stays text.

A template is a file of macros, next to the module that uses it:

    HTML = macros("widgets.html", duration=duration)
    HTML.timing(rows)
"""

import re
from collections.abc import Callable
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template
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


class Macros:
    """A template's macros as functions that return HTML as plain str, which the page's handlers may cut and join."""

    def __init__(self, template: Template):
        self._template = template

    def __getattr__(self, name: str) -> Callable[..., str]:
        macro = getattr(self._template.module, name)
        return lambda *values, **named: str(macro(*values, **named))


def macros(file: str, **names: object) -> Macros:
    """The macros of a template in koala/ui/; `names` are functions and values that all of them may use.

    HTML that another macro made is text to a template that gets it from Python: it shows it with `| safe`.
    """
    return Macros(ENVIRONMENT.get_template(file, globals=names))
