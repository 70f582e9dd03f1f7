"""A measurement in the Benchmark tab, from the press of its button to its end, as updates of the page."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing

import gradio as gr

from koala.errors import Cancelled, UserError
from koala.ui.benchmark.chart import status
from koala.ui.messages import complain, readable, sentence
from koala.ui.under_way import Life, UnderWay


class Measuring:
    """What both sections of the tab share: one measurement of a page at a time, its status line and its two buttons.

    A section sets `status` (the HTML of the line) and `start` (the button).
    """

    status: gr.HTML
    start: gr.Button

    def __init__(self) -> None:
        self.active = UnderWay()

    def free(self, request: gr.Request) -> None:
        """UserError where this page's measurement is still running."""
        if request.session_hash in self.active:
            raise UserError("your measurement is still running; press Stop first")

    def follow(
        self,
        request: gr.Request,
        turn: Callable[[Life], Iterator[list]],
        show: Callable[[Sequence], dict],
        *,
        first: dict,
        failed: str,
    ) -> Iterator[dict]:
        """The updates of a run: `turn` gives its events, of which texts go to the status line and others to `show`.

        `first` is shown at once, and `failed` heads the message of an error.
        """
        with self.active.run(request.session_hash) as life:
            yield first | {self.status: status("Starting", running=True), self.start: gr.Button(interactive=False)}
            try:
                with closing(turn(life)) as events:
                    for news in events:
                        texts = [event for event in news if isinstance(event, str)]
                        others = [event for event in news if not isinstance(event, str)]
                        line = {self.status: status(texts[-1], running=True) if texts else gr.skip()}
                        yield line | (show(others) if others else {})
                ended = "Done."
            except Cancelled:
                ended = "Stopped."
            except Exception as error:  # whatever it is, the page says it, and the button works again
                problem = readable(error)
                yield {self.status: status(sentence(problem), failed=True), self.start: gr.Button(interactive=True)}
                raise complain(UserError(problem), failed) from None
        yield {self.status: status(ended), self.start: gr.Button(interactive=True)}

    def halt(self, request: gr.Request) -> None:
        """The Stop button. What was measured is kept; a run that waits leaves the queue."""
        self.active.stop(request.session_hash)

    def ready(self) -> dict:
        """Enable the button again after a run that failed or could not begin."""
        return gr.Button(interactive=True)
