"""The Benchmark tab: a small matrix of models, sizes and presets, measured here and now beside its prediction."""

import dataclasses
import queue
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from html import escape

import gradio as gr

from koala.bench_matrix import MAX_REPEATS, PRESET_NAMES, Matrix
from koala.locate import availability
from koala.registry import ModelCard
from koala.request import RequestError
from koala.ui import bench_chart, limits, widgets
from koala.ui.messages import complain
from koala.ui.session import Session
from koala.ui.updates import HEARTBEAT

QUIET = {"api_visibility": "private", "show_progress": "hidden"}
CHEAP = QUIET | {"concurrency_limit": None}
STOPPING = "Stopping …"
WHAT = "a benchmark"  # what a GPU would be asked for
SIZES = (128, 192, 256, 512, 768, 1024)
BATCHES = (1, 2, 4)
MAX_MODELS = 4
MAX_SECONDS = 540  # of a whole run: others wait for the device


@dataclass(kw_only=True)
class _Run:
    """A benchmark that waits for its turn or has it: `events` are texts, cells, and in the end None or an error."""

    matrix: Matrix
    cancel: threading.Event = field(default_factory=threading.Event)
    events: queue.Queue = field(default_factory=queue.Queue)

    def stop(self) -> None:
        self.cancel.set()
        self.events.put(STOPPING)


class Bench:
    """The tab's components and handlers."""

    def __init__(self, session: Session):
        self.session = session
        self.waiting: dict[str, _Run] = {}  # by the visitor's session hash
        self.active: dict[str, _Run] = {}
        native = session.card(session.models[0]).width
        why_not = session.lent_too_short(WHAT)
        most_steps = limits.most_steps(local=session.local)
        most_seconds = MAX_SECONDS if session.local else limits.PUBLIC_SECONDS
        with gr.Row(elem_classes="k-panes kb-panes"):
            with gr.Column(elem_classes="k-controls k-ask"):
                self.models = gr.Dropdown(
                    self.choices(),
                    value=list(session.models),
                    label="Models",
                    info="The first is the baseline of the speed-ups.",
                    multiselect=True,
                    max_choices=MAX_MODELS,
                    elem_id="kb-models",
                )
                sizes = [s for s in SIZES if native // 4 <= s <= max(native, 256)]
                self.sizes = gr.CheckboxGroup(
                    [(f"{s} px", s) for s in sizes],
                    value=[s for s in sizes if s in (native // 2, native)],
                    label="Sizes",
                    elem_id="kb-sizes",
                )
                self.presets = gr.CheckboxGroup(
                    list(PRESET_NAMES),
                    value=["quality"],
                    label="Presets",
                    info="stock is diffusers' own pipeline on the same weights.",
                    elem_id="kb-presets",
                )
                self.batch = gr.CheckboxGroup(list(BATCHES), value=[1], label="Pictures at once", elem_id="kb-batch")
                with gr.Row():
                    self.steps = gr.Number(
                        label="Steps", value=4, minimum=1, maximum=most_steps, precision=0, min_width=90
                    )
                    self.repeats = gr.Number(
                        label="Runs", value=3, minimum=1, maximum=MAX_REPEATS, precision=0, min_width=90
                    )
                    self.limit = gr.Number(
                        label="Limit, s",
                        value=min(120, most_seconds),
                        minimum=1,
                        maximum=most_seconds,
                        precision=0,
                        min_width=90,
                    )
                most = (
                    f"At most {MAX_MODELS} models, {most_steps} steps, {MAX_REPEATS} runs and {most_seconds} s in all."
                )
                most += "" if session.local else f" {limits.most_pictures(local=False)}"
                gr.HTML(widgets.bounds(most), apply_default_css=False)
                with gr.Row(elem_classes="k-actions"):
                    usable = {"interactive": not why_not}
                    self.start = gr.Button(
                        "Start", variant="primary", elem_id="kb-start", scale=3, min_width=140, **usable
                    )
                    self.stop = gr.Button("Stop", variant="stop", elem_id="kb-stop", scale=1, min_width=80, **usable)
            with gr.Column(elem_classes="k-results"):
                said = why_not and f"{why_not[:1].upper()}{why_not[1:]}."
                self.status = gr.HTML(status(said), elem_id="kb-status", apply_default_css=False)
                empty = bench_chart.off(session.models) if why_not else bench_chart.EMPTY
                self.panel = gr.HTML(empty, elem_id="kb-panel", apply_default_css=False)
        shown = [self.status, self.panel]
        given = [self.models, self.sizes, self.presets, self.batch, self.steps, self.repeats, self.limit]
        # in the queue, but in no line of it: a complaint from outside the queue reaches the page without its words
        asked = self.start.click(self.wait, given, [*shown, self.start], **CHEAP)
        run = asked.success(
            self.run, None, [*shown, self.start], concurrency_id="gpu", trigger_mode="multiple", **QUIET
        )
        run.failure(self.fail, None, [self.status, self.start], queue=False, **CHEAP)
        self.stop.click(self.halt, None, [self.status, self.start], queue=False, **CHEAP)
        gr.context.Context.root_block.unload(self.leave)

    def choices(self) -> list[tuple[str, str]]:
        """Models that are on this machine; other tabs may have made new ones."""
        return [choice for choice in self.session.choices() if availability(self.session.card(choice[1]))[0]]

    def title(self, name: str) -> str:
        """Of the model of this name; RequestError for an unknown one."""
        return self.session.card(name).title

    def wait(self, request: gr.Request, models, sizes, presets, batch, steps, repeats, limit) -> dict:
        """The Start button, answered at once: the matrix is checked, and waits for its turn on the device."""
        try:
            self.session.require_own_device(WHAT)
            if len(models) > MAX_MODELS:
                raise RequestError(f"choose at most {MAX_MODELS} models")
            if not sizes:
                raise RequestError("choose at least one size")
            if request.session_hash in self.active:
                raise RequestError("your benchmark is still running; press Stop first")
            matrix = Matrix(
                models=tuple(self.session.card(name).name for name in models),
                sizes=tuple(sizes),
                presets=tuple(presets),
                batch=tuple(batch),
                steps=steps,
                repeats=repeats or 0,
                time_limit=limit or 0,
            )
            if not self.session.local:
                limits.check_public_benchmark(matrix, [self.session.card(name) for name in matrix.models])
        except RequestError as error:
            raise complain(error) from None
        self.waiting[request.session_hash] = _Run(matrix=matrix)
        return {
            self.status: status("Waiting for the device …", running=True),
            self.panel: bench_chart.EMPTY,
            self.start: gr.Button(interactive=False),
        }

    def run(self, request: gr.Request) -> Iterator[dict]:
        """The visitor's turn: what is measured now, every row as it comes, and how it ended."""
        run = self.waiting.pop(request.session_hash, None)
        if run is None:
            yield {self.status: gr.skip()}  # stopped while it waited
            return
        self.active[request.session_hash] = run
        worker = threading.Thread(target=self._work, args=(run,), name="koala-bench", daemon=True)
        try:
            with self.session.using(*run.matrix.models):
                worker.start()
                yield from self._follow(run)
            ended = "Done."
        except Exception as error:
            if not run.cancel.is_set():
                raise complain(error, "The benchmark failed") from None
            ended = "Stopped."
        finally:
            run.cancel.set()
            worker.join(timeout=60)
            del self.active[request.session_hash]
        yield {self.status: status(ended), self.start: gr.Button(interactive=True)}

    def _follow(self, run: "_Run") -> Iterator[dict]:
        """What a run under way shows, until it ends or fails."""
        yield {self.status: status("Starting", running=True)}
        cells: list = []
        while True:
            try:
                event = run.events.get(timeout=HEARTBEAT)
            except queue.Empty:
                yield {self.status: gr.skip()}  # a closed page is noticed here
                continue
            if event is None:
                return
            if isinstance(event, Exception):
                raise event
            if isinstance(event, str):
                yield {self.status: status(STOPPING if run.cancel.is_set() else event, running=True)}
            else:
                cells.append(event)
                yield self._shown(run.matrix, cells)

    def halt(self, request: gr.Request) -> tuple:
        """The Stop button. A run ends by itself, within one step, and says so; the rows that are there stay."""
        if self.waiting.pop(request.session_hash, None):
            return status("Stopped."), gr.Button(interactive=True)
        if run := self.active.get(request.session_hash):
            run.stop()
        return gr.skip(), gr.skip()

    def fail(self, request: gr.Request) -> tuple:
        """As before a run that failed, or that the queue had no room for."""
        self.waiting.pop(request.session_hash, None)
        return status("The benchmark failed."), gr.Button(interactive=True)

    def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        self.halt(request)

    def _work(self, run: "_Run") -> None:
        try:
            library = self.session.library()
            from koala.bench import measure

            for cell in measure(run.matrix, library, on_run=run.events.put, cancel=run.cancel):
                run.events.put(cell)
            run.events.put(None)
        except Exception as error:
            run.events.put(error)

    def _shown(self, matrix: Matrix, cells: list) -> dict:
        """The panel, from the cells so far."""
        from koala.bench_report import report
        from koala.evaluate.reports import circumstances

        found = report(matrix, cells, random_weights=False)
        said = command(matrix, [self.session.card(name) for name in matrix.models])
        found |= circumstances([], self.session.library().device) | {"command": said}
        return {self.panel: bench_chart.panel(found, self.title)}


def status(text: str, *, running: bool = False) -> str:
    """The line that says how the benchmark stands, as HTML; Ready where there is no text."""
    return f'<p class="kb-status" role="status" data-running="{str(running).lower()}">{escape(text) or "Ready."}</p>'


def command(matrix: Matrix, cards: Sequence[ModelCard]) -> str:
    """The same benchmark for a terminal, which first makes the students that only this app has."""
    cuts = [
        f"python -m koala compress --teacher {card.teacher} --spec {card.spec.notation} --out {card.name} && "
        for card in cards
        if card.teacher and not card.on_hub and not card.embedded and card.name != card.source
    ]
    words = ["python -m koala bench"]
    for name, value in dataclasses.asdict(matrix).items():
        values = value if isinstance(value, list | tuple) else [value]
        words.append(
            f"--{name.replace('_', '-')} {' '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in values)}"
        )
    return "".join(cuts) + " ".join([*words, "--out bench.json"])


def build(session: Session) -> None:
    """Inside its gr.Tab; choosing the tab renews the list of models."""
    tab, own_tab = Bench(session), gr.context.Context.block
    own_tab.select(lambda: gr.Dropdown(tab.choices()), None, tab.models, queue=False, **CHEAP)
