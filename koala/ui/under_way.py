"""What each visitor's page has under way, for its Stop button."""

from typing import Generic, TypeVar

import gradio as gr

Run = TypeVar("Run")


class UnderWay(Generic[Run]):
    """One run of a page at a time, by the page's session hash.

    When Stop is pressed Gradio closes the run's generator and calls Stop's handler at the same moment, in either order.
    So a run that was closed stays here for the handler, which alone knows what the page shows next; what nobody
    stopped goes with its page.
    """

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}
        gr.context.Context.root_block.unload(self._leave)

    def __len__(self) -> int:
        return len(self._runs)

    def begin(self, page: str, run: Run) -> None:
        """The page's run from now on."""
        self._runs[page] = run

    def end(self, page: str, run: Run) -> None:
        """The run came to its own end; nothing is left to stop."""
        if self._runs.get(page) is run:
            del self._runs[page]

    def take(self, page: str) -> Run | None:
        """The page's run for who stops it, once."""
        return self._runs.pop(page, None)

    def _leave(self, request: gr.Request) -> None:
        self.take(request.session_hash)
