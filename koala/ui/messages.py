"""Errors as Gradio shows them: its toasts render HTML, so everything is escaped."""

import logging
from html import escape

import gradio as gr

from koala.errors import UserError
from koala.hardware.shortage import ran_out

log = logging.getLogger(__name__)
LONGEST = 700  # characters that a person may be asked to read


def readable(error: Exception) -> str:
    """An exception as a sentence with a remedy; what is not a UserError is logged whole."""
    if isinstance(error, UserError):
        return str(error)
    if ran_out(error):
        log.warning("memory ran out: %s", error)
        return (
            "there is not enough memory for this request; choose a smaller width and height, fewer images, "
            "or smaller models, and try again"
        )
    log.error("a run failed", exc_info=error)
    return f"the run failed with {type(error).__name__}; the terminal in which the app runs shows why. Try again"


def sentence(text: str) -> str:
    """Text for a person to read: clipped, with a capital letter."""
    text = text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."
    return text[:1].upper() + text[1:]


def safe(text: str) -> str:
    """The same for a toast: escaped; quotes stay as they are, for an API's readers."""
    return escape(sentence(text), quote=False)


def complain(error: Exception, title: str = "That does not work") -> gr.Error:
    """The error for a handler to raise: a toast of 12 s with a remedy in it."""
    return gr.Error(safe(readable(error)), title=title, duration=12, print_exception=False)


def warn(text: str, title: str) -> None:
    """A toast at once; the handler that shows it goes on."""
    gr.Warning(safe(text), title=title)
