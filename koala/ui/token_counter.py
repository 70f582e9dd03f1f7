"""The line below a prompt: how many of its tokens the models read, and the words that they do not."""

from collections.abc import Sequence
from pathlib import Path

import gradio as gr

from koala.errors import UserError
from koala.request import GenerationRequest
from koala.ui.html import macros
from koala.ui.messages import readable
from koala.ui.session import Session

SHOWN = 300  # characters of the text that is not read
CHEAP = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None, "queue": False}
HTML = macros("token_counter.html", most=SHOWN)


class TokenCounter:
    """The line below one text field; build it inside the layout, then `follow` the fields that change it."""

    def __init__(self, session: Session):
        self.session = session
        self._folders: dict[str, tuple[Path, ...]] = {}  # of tokenizers, by model
        self.line = gr.HTML("", apply_default_css=False, elem_classes="k-token-line")

    def follow(self, text: gr.Textbox, models: Sequence[gr.Dropdown]) -> None:
        """Count again whenever the text or a model changes; until the libraries are imported, every second."""
        asked = [text, *models]
        waiting = gr.Timer(1.0)
        gr.on([part.change for part in asked], self.count, asked, self.line, trigger_mode="always_last", **CHEAP)
        waiting.tick(self.first, asked, [self.line, waiting], **CHEAP)

    def first(self, text: str, *models: str):
        """The line for the text that is there when the page opens, as soon as it can be counted."""
        ready = self.session.loader.imported
        return self.count(text, *models), gr.Timer(active=not ready)

    def count(self, text: str, *models: str) -> str:
        """The line as HTML; empty for an empty text, and before the libraries are imported."""
        if not self.session.loader.imported or not isinstance(text, str) or not text.strip():
            return ""
        try:
            GenerationRequest(model="any", prompt=text)  # text that is far too long is not tokenised
        except UserError as error:
            return HTML.problem(readable(error))
        from koala.sampling.tokens import read_text

        counts = {}  # by title
        for name in models:
            if folders := self._tokenizers(name):
                counts[self.session.catalogue.card(name).title] = read_text(text, folders)
        if len(set(counts.values())) == 1:
            return HTML.counts({"": next(iter(counts.values()))})
        return HTML.counts(counts)

    def _tokenizers(self, name: object) -> tuple[Path, ...]:
        """Where a model's tokenizers are; none if it is not on this machine."""
        if not isinstance(name, str):
            return ()
        if name not in self._folders:
            from koala.sampling.tokens import tokenizer_folders

            try:
                self._folders[name] = tokenizer_folders(self.session.catalogue.card(name))
            except UserError:  # its own state, or the run, says what is wrong with it
                return ()
        return self._folders[name]
