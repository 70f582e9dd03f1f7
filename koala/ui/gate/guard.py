"""Around every handler: a value that its field cannot take is refused, and every error has a message."""

from collections.abc import Sequence
from typing import Any

import gradio as gr
from gradio.block_function import BlockFunction
from gradio.blocks import Block, Blocks
from gradio.exceptions import Error

from koala.ui.messages import complain, safe

PLAIN = (gr.Textbox, gr.Dropdown, gr.Radio, gr.CheckboxGroup, gr.Number, gr.Slider, gr.Checkbox, gr.BrowserState)


def guard(demo: Blocks) -> None:
    """Wrap how Gradio prepares values and calls the page's handlers."""
    preprocess, call = demo.preprocess_data, demo.call_function

    async def preprocessed(block_fn: BlockFunction, inputs: list, *rest, **options) -> list:
        try:
            _check(block_fn.inputs, inputs)
            return await preprocess(block_fn, inputs, *rest, **options)
        except Exception as error:
            message = error.message if isinstance(error, Error) else f"a value of this request cannot be used: {error}"
            raise Error(safe(str(message)), print_exception=False) from None

    async def called(
        block_fn: BlockFunction,
        values: list,
        iterator: Any = None,
        requests: Any = None,
        event_id: str | None = None,
        event_data: gr.EventData | None = None,
        *rest,
    ) -> dict[str, Any]:
        if event_data is not None and not isinstance(event_data._data, dict):
            event_data._data = {}  # our own widgets send objects
        try:
            return await call(block_fn, values, iterator, requests, event_id, event_data, *rest)
        except Error as error:
            error.print_exception = False  # it has a message; a traceback would add nothing
            raise
        except Exception as error:
            raise complain(error) from None

    demo.preprocess_data, demo.call_function = preprocessed, called


def _check(blocks: Sequence[Block], values: Sequence[Any]) -> None:
    """ValueError for a field whose value is not a text, a number, a truth value or a list of these."""
    for block, value in zip(blocks, values, strict=False):
        if isinstance(block, PLAIN):
            parts = value if isinstance(value, list) else [value]
            name = getattr(block, "label", None) or "a field"
            if not all(part is None or isinstance(part, str | int | float) for part in parts):
                raise ValueError(f"{name} takes text, a number or a list of them, not {str(value)[:60]}")
            if isinstance(value, list) and not _takes_many(block):
                raise ValueError(f"{name} takes one value, not a list")


def _takes_many(block: Block) -> bool:
    return isinstance(block, gr.CheckboxGroup) or bool(getattr(block, "multiselect", False))
