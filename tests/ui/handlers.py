"""A tab's handlers without a browser: what Gradio hands them, and their answers by the component's name."""

import gradio as gr


class Visitor:
    """What a handler knows of who sent an event."""

    session_hash = "one"


class Sent:
    """What a browser's event carries: a value, or the data of a component of our own."""

    def __init__(self, value: str = "", **data):
        self.value, self._data = value, data


def named(tab, update: dict) -> dict:
    """An update of components, by the names that the tab gives them."""
    return {name: update[c] for name, c in vars(tab).items() if isinstance(c, gr.blocks.Block) and c in update}
