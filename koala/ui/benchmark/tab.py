"""The Benchmark tab: a small matrix of models, sizes and presets, measured here and compared with its prediction."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import gradio as gr

from koala.benchmark.matrix import MAX_REPEATS, PRESET_NAMES, Matrix
from koala.errors import UserError
from koala.models.cards import ModelCard
from koala.models.locate import availability
from koala.ui import limits, widgets
from koala.ui.benchmark import chart as bench_chart
from koala.ui.benchmark import steps
from koala.ui.benchmark.chart import status
from koala.ui.benchmark.measuring import Measuring
from koala.ui.device import drawing
from koala.ui.messages import complain
from koala.ui.session import Session
from koala.ui.under_way import Life

if TYPE_CHECKING:
    from koala.models.library import Library

QUIET = {"api_visibility": "private", "show_progress": "hidden"}
CHEAP = QUIET | {"concurrency_limit": None}
WHAT = "a benchmark"  # in messages about a GPU that is only lent
SIZES = (128, 192, 256, 512, 768, 1024)
BATCHES = (1, 2, 4)
MAX_MODELS = 4
MAX_SECONDS = 540  # of a whole run, since others wait for the device


class Bench(Measuring):
    """The tab's components and handlers."""

    def __init__(self, session: Session):
        super().__init__()
        self.session = session
        native = session.catalogue.card(session.models[0]).width
        why_not = session.device.lent_too_short(WHAT)
        most_steps = limits.most_steps(local=session.local)
        most_seconds = MAX_SECONDS if session.local else limits.PUBLIC_SECONDS
        with gr.Row(elem_classes="k-panes kb-panes"):
            with gr.Column(elem_classes="k-controls k-ask"):
                choices = self.choices()
                here = {name for _, name in choices}
                self.models = gr.Dropdown(
                    choices,
                    value=[name for name in session.models if name in here],
                    label="Models",
                    info="The first model is the baseline of the speed-ups.",
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
                    info="'stock' is the pipeline of diffusers with the same weights.",
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
                reason = why_not and f"{why_not[:1].upper()}{why_not[1:]}."
                self.status = gr.HTML(status(reason), elem_id="kb-status", apply_default_css=False)
                empty = bench_chart.OFF if why_not else bench_chart.EMPTY
                self.panel = gr.HTML(empty, elem_id="kb-panel", apply_default_css=False)
        shown = [self.status, self.panel]
        given = [self.models, self.sizes, self.presets, self.batch, self.steps, self.repeats, self.limit]
        # several at once: a click right after Stop is heard
        run = self.start.click(self.run, given, [*shown, self.start], trigger_mode="multiple", **CHEAP)
        run.failure(self.ready, None, self.start, queue=False, **CHEAP)
        self.stop.click(self.halt, queue=False, **CHEAP)

    def choices(self) -> list[tuple[str, str]]:
        """(title, name) of the models on this machine; other tabs may have added some."""
        catalogue = self.session.catalogue
        return [choice for choice in catalogue.choices() if availability(catalogue.card(choice[1]))[0]]

    def title(self, name: str) -> str:
        """Of the model of this name; UserError for an unknown one."""
        return self.session.catalogue.card(name).title

    def _matrix(self, models, sizes, presets, batch, steps, repeats, limit) -> Matrix:
        """What the page's fields ask for; UserError for what cannot be measured."""
        self.session.device.require_own(WHAT)
        if len(models) > MAX_MODELS:
            raise UserError(f"choose at most {MAX_MODELS} models")
        if not sizes:
            raise UserError("choose at least one size")
        matrix = Matrix(
            models=tuple(self.session.catalogue.card(name).name for name in models),
            sizes=tuple(sizes),
            presets=tuple(presets),
            batch=tuple(batch),
            steps=steps,
            repeats=repeats or 0,
            time_limit=limit or 0,
        )
        if not self.session.local:
            limits.check_public_benchmark(matrix, [self.session.catalogue.card(name) for name in matrix.models])
        return matrix

    def run(self, request: gr.Request, *given) -> Iterator[dict]:
        """The Start button: the place in the queue, what is measured now, every row as it comes, and how it ended."""
        try:
            self.free(request)
            matrix = self._matrix(*given)
        except UserError as error:
            raise complain(error) from None
        cells: list = []

        def show(measured: Sequence) -> dict:
            cells.extend(measured)
            return self._shown(matrix, cells)

        visitor = self.session.device.visitor(request)
        yield from self.follow(
            request,
            lambda life: self._turn(matrix, life, visitor),
            show,
            first={self.panel: bench_chart.EMPTY},
            failed="The benchmark failed",
        )

    def _turn(self, matrix: Matrix, life: Life, visitor: str) -> Iterator[list]:
        """The events of a benchmark: texts, and the cells as they are measured."""

        def measured(library: "Library", _) -> None:
            from koala.benchmark.measure import measure

            for cell in measure(matrix, library, cards=cards, on_run=life.tell, cancel=life.over):
                life.tell(cell)

        cards = [self.session.catalogue.card(name) for name in matrix.models]
        size, images = max(matrix.sizes), max(matrix.batch)
        requests = [matrix.request(card.name, size, images) for card in cards]  # the largest, should memory run out
        drawn = drawing(requests, cards, "benchmark")
        times = len(matrix.sizes) * len(matrix.batch) * len(matrix.presets) * matrix.repeats
        work = dataclasses.replace(drawn, amount=drawn.amount * times, most=matrix.time_limit)
        return self.session.device.turn(matrix.models, measured, life, visitor=visitor, work=work, requests=requests)

    def _shown(self, matrix: Matrix, cells: list) -> dict:
        """The panel, from the cells so far."""
        from koala.benchmark.report import report
        from koala.evaluate.reports import circumstances

        benchmark = report(matrix, cells, random_weights=False)
        cards = [self.session.catalogue.card(name) for name in matrix.models]
        benchmark |= circumstances([], self.session.loader.library().device, weights=cards)
        benchmark["command"] = command(matrix, cards)
        return {self.panel: bench_chart.panel(benchmark, self.title, self.session.catalogue.card)}


def command(matrix: Matrix, cards: Sequence[ModelCard]) -> str:
    """The command that runs the same benchmark; it first cuts the students that only this app has."""
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
    """Build it inside its gr.Tab; selecting the tab updates the lists of models."""
    tab, scores, own_tab = Bench(session), steps.build(session), gr.context.Context.block
    own_tab.select(lambda: gr.Dropdown(tab.choices()), None, tab.models, queue=False, **CHEAP)
    own_tab.select(lambda: gr.Dropdown(scores.choices()), None, scores.models, queue=False, **CHEAP)
