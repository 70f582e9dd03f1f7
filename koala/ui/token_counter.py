"""The line under a prompt: how many of its tokens the models read, and the words that they do not."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import gradio as gr

from koala.errors import UserError
from koala.request import GenerationRequest
from koala.ui.messages import readable
from koala.ui.session import Session

SHOWN = 300  # characters of what is not read
CHEAP = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None, "queue": False}


class TokenCounter:
    """The line under one text field; build it inside the layout, then `follow` the fields that change it."""

    def __init__(self, session: Session):
        self.session = session
        self._folders: dict[str, tuple[Path, ...]] = {}  # of tokenizers, by model
        self.line = gr.HTML("", apply_default_css=False, elem_classes="k-token-line")

    def follow(self, text: gr.Textbox, models: Sequence[gr.Dropdown]) -> None:
        """Count anew whenever the text or a model changes; until the libraries are there, every second."""
        asked = [text, *models]
        waiting = gr.Timer(1.0)
        gr.on([part.change for part in asked], self.count, asked, self.line, trigger_mode="always_last", **CHEAP)
        waiting.tick(self.first, asked, [self.line, waiting], **CHEAP)

    def first(self, text: str, *models: str):
        """The line of what stands there when the page opens, as soon as it can be told."""
        ready = self.session.imported
        return self.count(text, *models), gr.Timer(active=not ready)

    def count(self, text: str, *models: str) -> str:
        """The line as HTML; empty for an empty text, and before the libraries are imported."""
        if not self.session.imported or not isinstance(text, str) or not text.strip():
            return ""
        try:
            GenerationRequest(model="any", prompt=text)  # what is far too long is not cut into tokens
        except UserError as error:
            return _line(escape(readable(error)), over=True)
        from koala.sampling.tokens import read_text

        found = {}  # by title
        for name in models:
            if folders := self._tokenizers(name):
                found[self.session.card(name).title] = read_text(text, folders)
        alike = len(set(found.values())) == 1
        return "".join(
            _told(one, "" if alike else f"{title}: ") for title, one in list(found.items())[: 1 if alike else None]
        )

    def _tokenizers(self, name: object) -> tuple[Path, ...]:
        """Where a model's tokenizers are; none where it is not on this machine."""
        if not isinstance(name, str):
            return ()
        if name not in self._folders:
            from koala.sampling.tokens import tokenizer_folders

            try:
                self._folders[name] = tokenizer_folders(self.session.card(name))
            except UserError:  # its own state, or the run, says what is wrong with it
                return ()
        return self._folders[name]


def _told(found, whose: str) -> str:
    counted = f"{escape(whose)}{found.tokens:,} of {found.limit} tokens"
    if not found.unread:
        return _line(counted)
    words = found.unread if len(found.unread) <= SHOWN else f"{found.unread[:SHOWN]}…"
    return _line(f'{counted}. Not read: <q dir="auto">{escape(words.strip())}</q>', over=True)


def _line(html: str, *, over: bool = False) -> str:
    return f'<p class="k-tokens{" k-over" if over else ""}"{" role=status" if over else ""}>{html}</p>'
