"""What each visitor's page has under way, for its Stop button."""

from typing import Generic, TypeVar

Run = TypeVar("Run")
_MOST = 64  # far more than the queue has room for


class UnderWay(Generic[Run]):
    """One run of a page at a time, by the page's session hash.

    When Stop is pressed Gradio closes the run's generator and calls Stop's handler at the same moment, in either order.
    So a run that was closed stays here for the handler, which alone knows what the page shows next. Of pages that were
    left in the middle of a run nobody asks again; the oldest of them go.
    """

    def __init__(self) -> None:
        self._runs: dict[str, Run] = {}  # the oldest first

    def __len__(self) -> int:
        return len(self._runs)

    def begin(self, page: str, run: Run) -> None:
        """The page's run from now on."""
        self._runs.pop(page, None)
        self._runs[page] = run
        for oldest in list(self._runs)[:-_MOST]:
            self._runs.pop(oldest, None)

    def end(self, page: str, run: Run) -> None:
        """The run came to its own end; nothing is left to stop."""
        if self._runs.get(page) is run:
            del self._runs[page]

    def take(self, page: str) -> Run | None:
        """The page's run for who stops it, once."""
        return self._runs.pop(page, None)
