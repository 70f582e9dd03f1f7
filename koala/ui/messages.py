"""Errors in the words of the page, as Gradio shows them: its toasts render HTML, so everything is escaped."""

import logging
import re
from html import escape

import gradio as gr

from koala.errors import UserError
from koala.hardware.shortage import ran_out

log = logging.getLogger(__name__)
LONGEST = 700  # characters that a person may be asked to read

# The core's remedies for a terminal -> what a visitor of the page can do instead.
_KOALA = r"(?:python -m )?koala"
_EXPORT = rf"(?:python -m koala export|{_KOALA} export)"
_REMEDIES = (
    (rf"fetch it once( \([^)]*\))?: {_KOALA} fetch \S+", r"download it once\1 in the Compare tab, on your own machine"),
    (rf"With a network: {_KOALA} fetch \S+", "With a network, download it in the Compare tab"),
    (rf"fetch (?:it again|one): {_KOALA} fetch \S+", "download it in the Compare tab"),
    (rf": {_KOALA} fetch \S+ --tiny-vae brings it", ""),
    (rf"`{_KOALA} models` lists (?:them|the known ones)", "choose one from the list"),
    (rf"{_EXPORT} verify .+? names the part at fault", "Verify in the Export tab names the part at fault"),
    (rf": {_EXPORT} (?!verify)[^;.]*(?:\.[^\s;.][^;.]*)*", " in the Export tab"),
    (rf"draw it in float32: {_KOALA} generate --dtype float32", "choose another model"),
    (r"use --preset (\S+)", r"choose the preset \1"),
    (r"--width (\d+) --height (\d+) --images 1\b", r"one image of \1x\2 px"),
    (r"lower --lora-strength", "lower the LoRA strength"),
    (r"use --device \S+", "choose another model"),
    (r"for example --models (\S+) (\S+)", r"for example \1 and \2"),
)
_FOR_TERMINALS = re.compile(rf"\bpython -m \w|(?<!\S)`?{_KOALA} [a-z]+ -|(?<!\S)--[a-z]")


def page_words(text: str) -> str:
    """A message of the core without remedies for a terminal, which a visitor of the page does not have.

    A clause whose remedy has no counterpart on the page is left out, unless it is all there is.
    """
    for remedy, words in _REMEDIES:
        text = re.sub(remedy, words, text)
    clauses = text.split("; ")
    return "; ".join(clause for clause in clauses if not _FOR_TERMINALS.search(clause)) or text


def readable(error: Exception) -> str:
    """An exception as a sentence with a remedy for the page; anything but a UserError is logged with its traceback."""
    if isinstance(error, UserError):
        return page_words(str(error))
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
    """Show a toast now; the handler continues."""
    gr.Warning(safe(page_words(text)), title=title)
