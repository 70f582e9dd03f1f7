"""The Benchmark tab: a small matrix of models, sizes and presets, measured here and now beside its prediction."""

import dataclasses
import hashlib
import json
import queue
import threading
from collections.abc import Iterator
from html import escape
from pathlib import Path

import gradio as gr
from gradio.utils import get_upload_folder

from koala.bench_matrix import MAX_REPEATS, PRESET_NAMES, Matrix
from koala.request import MAX_STEPS, RequestError
from koala.ui import bench_chart
from koala.ui.messages import complain
from koala.ui.session import HEARTBEAT, Session

QUIET = {"api_visibility": "private", "show_progress": "hidden"}
SIZES = (128, 192, 256, 512, 768, 1024)
BATCHES = (1, 2, 4)
MAX_MODELS = 4
MAX_SECONDS = 540  # of a whole run: others wait for the device


class Bench:
    """The tab's components and handlers."""

    def __init__(self, session: Session):
        self.session = session
        self.active: dict[str, threading.Event] = {}  # by the visitor's session hash
        native = session.card(session.models[0]).width
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
                        label="Steps", value=4, minimum=1, maximum=MAX_STEPS, precision=0, min_width=90
                    )
                    self.repeats = gr.Number(
                        label="Runs", value=3, minimum=1, maximum=MAX_REPEATS, precision=0, min_width=90
                    )
                    self.limit = gr.Number(
                        label="Limit, s", value=120, minimum=1, maximum=MAX_SECONDS, precision=0, min_width=90
                    )
                with gr.Row(elem_classes="k-actions"):
                    self.start = gr.Button("Start", variant="primary", elem_id="kb-start", scale=3, min_width=140)
                    self.stop = gr.Button("Stop", variant="stop", elem_id="kb-stop", scale=1, min_width=80)
            with gr.Column(elem_classes="k-results"):
                self.status = gr.HTML(status(""), elem_id="kb-status", apply_default_css=False)
                self.panel = gr.HTML(bench_chart.EMPTY, elem_id="kb-panel", apply_default_css=False)
                self.json = gr.DownloadButton("Download as JSON", visible=False, size="sm", elem_id="kb-json")
        shown = [self.status, self.panel, self.json]
        run = self.start.click(
            self.run,
            [self.models, self.sizes, self.presets, self.batch, self.steps, self.repeats, self.limit],
            shown,
            concurrency_id="gpu",
            trigger_mode="once",
            **QUIET,
        )
        self.stop.click(self.halt, None, self.status, cancels=[run], queue=False, concurrency_limit=None, **QUIET)
        self.models.focus(lambda: gr.Dropdown(self.choices()), None, self.models, concurrency_limit=None, **QUIET)

    def choices(self) -> list[tuple[str, str]]:
        """Models that are on this machine; other tabs may have made new ones."""
        return [choice for choice in self.session.choices() if not choice[0].endswith("(not on this machine)")]

    def title(self, name: str) -> str:
        return self.session.card(name).title

    def run(self, request: gr.Request, models, sizes, presets, batch, steps, repeats, limit) -> Iterator[dict]:
        """The Start button: what is measured now, and every row as it comes."""
        try:
            matrix = Matrix(
                models=tuple(self.session.card(name).name for name in models),
                sizes=tuple(sizes),
                presets=tuple(presets),
                batch=tuple(batch),
                steps=steps,
                repeats=repeats or 0,
                time_limit=limit or 0,
            )
            if not sizes:
                raise RequestError("choose at least one size")
        except RequestError as error:
            raise complain(error) from None
        cancel, events = threading.Event(), queue.Queue()
        self.active[request.session_hash] = cancel
        worker = threading.Thread(target=self._work, args=(matrix, cancel, events), name="koala-bench", daemon=True)
        worker.start()
        cells: list = []
        yield {
            self.status: status("Starting", running=True),
            self.panel: bench_chart.EMPTY,
            self.json: gr.DownloadButton(visible=False),
        }
        try:
            while True:
                try:
                    event = events.get(timeout=HEARTBEAT)
                except queue.Empty:
                    yield {self.status: gr.skip()}  # a closed page is noticed here
                    continue
                if isinstance(event, str):
                    yield {self.status: status(event, running=True)}
                elif isinstance(event, Exception):
                    raise event
                elif event is None:
                    break
                else:
                    cells.append(event)
                    yield self._shown(matrix, cells)
        except Exception as error:
            if cancel.is_set():
                return
            yield {self.status: status("The benchmark failed.")}
            raise complain(error, "The benchmark failed") from None
        finally:
            cancel.set()
            worker.join(timeout=60)
            if self.active.get(request.session_hash) is cancel:
                del self.active[request.session_hash]
        yield self._shown(matrix, cells) | {self.status: status("Done.")}

    def halt(self, request: gr.Request):
        """The Stop button: ends within one step; the rows that are there stay."""
        cancel = self.active.pop(request.session_hash, None)
        if cancel is None:
            return gr.skip()
        cancel.set()
        return status("Stopped.")

    def _work(self, matrix: Matrix, cancel: threading.Event, events: queue.Queue) -> None:
        try:
            for name in matrix.models:
                self.session.model(name)
            from koala.bench import measure

            for cell in measure(matrix, self.session.library(), on_run=events.put, cancel=cancel):
                events.put(cell)
            events.put(None)
        except Exception as error:
            events.put(error)

    def _shown(self, matrix: Matrix, cells: list) -> dict:
        """The panel and the file, from the cells so far."""
        from koala.bench_report import report
        from koala.evaluate.reports import circumstances

        found = report(matrix, cells, random_weights=False)
        found |= circumstances([], self.session.library().get(matrix.models[0])) | {"command": command(matrix)}
        return {
            self.panel: bench_chart.panel(found, self.title),
            self.json: gr.DownloadButton(value=str(_save(found)), visible=True),
        }


def status(text: str, *, running: bool = False) -> str:
    return f'<p class="kb-status" role="status" data-running="{str(running).lower()}">{escape(text) or "Ready."}</p>'


def command(matrix: Matrix) -> str:
    """The same benchmark for a terminal."""
    words = ["python -m koala bench"]
    for name, value in dataclasses.asdict(matrix).items():
        values = value if isinstance(value, list | tuple) else [value]
        words.append(
            f"--{name.replace('_', '-')} {' '.join(f'{v:g}' if isinstance(v, float) else str(v) for v in values)}"
        )
    return " ".join([*words, "--out bench.json"])


def _save(found: dict) -> Path:
    """The report in the folder that Gradio serves and cleans."""
    text = json.dumps(found, indent=1) + "\n"
    folder = Path(get_upload_folder()) / hashlib.sha256(text.encode()).hexdigest()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / "koala-bench.json"
    path.write_text(text)
    return path


def build(session: Session) -> None:
    Bench(session)
