"""Score over steps: how many steps each model needs (KOALA, tables 5 and 9, figure 4), recorded and measured here."""

import base64
import json
import shlex
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import gradio as gr

from koala import charts
from koala.errors import Cancelled, UserError
from koala.evaluate import steps_figure, steps_tables
from koala.evaluate.settings import Settings
from koala.models.cards import EMBEDDED, ModelCard
from koala.models.locate import availability
from koala.request import GenerationRequest
from koala.ui.benchmark.chart import status
from koala.ui.benchmark.measuring import Measuring
from koala.ui.catalogue import portable_name
from koala.ui.device import drawing
from koala.ui.html import macros
from koala.ui.limits import OWN_MACHINE
from koala.ui.messages import complain
from koala.ui.session import Session
from koala.ui.under_way import Life
from koala.unet.specs import TINY_SDXL
from koala.words import duration, many, parameters_text

if TYPE_CHECKING:
    from koala.models.library import Library

QUIET = {"api_visibility": "private", "show_progress": "hidden", "concurrency_limit": None}
RECORDED = EMBEDDED / "scores" / "steps.json"
STEPS = (1, 2, 4, 8, 10, 25)
KINDS = 3  # of prompts
MAX_MODELS, MAX_PROMPTS = 4, 100
WHAT = "a score over steps"  # in messages about a GPU that is only lent
HTML = macros("benchmark/steps.html")
Cell = tuple[str, str]  # a figure, and a note below it


class StepsScore(Measuring):
    """The section's components and handlers."""

    def __init__(self, session: Session):
        super().__init__()
        self.session = session
        why_not = session.device.lent_too_short(WHAT)
        if not session.local and not why_not:
            why_not = f"this public server does not measure scores, which takes minutes{OWN_MACHINE}"
        usable = {"interactive": not why_not}
        with gr.Row(elem_classes="k-panes kb-panes"):
            with gr.Column(elem_classes="k-controls k-ask"):
                choices = self.choices()
                known = [name for _, name in choices]
                self.models = gr.Dropdown(
                    choices,
                    value=[name for name in session.models if name in known] or known[:1],
                    label="Models to score",
                    info="Models that draw shapes; a judge reads their pictures back.",
                    multiselect=True,
                    max_choices=MAX_MODELS,
                    elem_id="kb-steps-models",
                )
                self.steps = gr.CheckboxGroup(
                    list(STEPS), value=[2, 4, 25], label="Steps to try", elem_id="kb-steps-steps"
                )
                self.prompts = gr.Number(
                    label="Prompts",
                    info=f"Of each of the {KINDS} kinds, at most {MAX_PROMPTS}.",
                    value=5,
                    minimum=1,
                    maximum=MAX_PROMPTS,
                    precision=0,
                    elem_id="kb-steps-prompts",
                )
                self.unguided = gr.Checkbox(
                    label="Also without guidance", value=False, elem_id="kb-steps-unguided", container=False
                )
                with gr.Row(elem_classes="k-actions"):
                    self.start = gr.Button(
                        "Score", variant="primary", elem_id="kb-steps-start", scale=3, min_width=140, **usable
                    )
                    self.stop = gr.Button(
                        "Stop", variant="stop", elem_id="kb-steps-stop", scale=1, min_width=80, **usable
                    )
            with gr.Column(elem_classes="k-results"):
                reason = why_not and f"{why_not[:1].upper()}{why_not[1:]}."
                self.status = gr.HTML(status(reason), elem_id="kb-steps-status", apply_default_css=False)
                self.panel = gr.HTML(recorded(), elem_id="kb-steps-panel", apply_default_css=False)
        shown = [self.status, self.panel, self.start]
        given = [self.models, self.steps, self.prompts, self.unguided]
        run = self.start.click(self.run, given, shown, trigger_mode="multiple", **QUIET)
        run.failure(self.ready, None, self.start, queue=False, **QUIET)
        self.stop.click(self.halt, queue=False, **QUIET)

    def choices(self) -> list[tuple[str, str]]:
        """(title, name) of the models of the shapes world on this machine."""
        catalogue = self.session.catalogue
        cards = ((label, catalogue.card(name)) for label, name in catalogue.choices())
        return [(label, card.name) for label, card in cards if _draws_shapes(card) and availability(card)[0]]

    def run(
        self, request: gr.Request, models: list[str], steps: list[int], prompts: int | None, unguided: bool
    ) -> Iterator[dict]:
        """The Score button: the place in the queue, what is drawn now, then the report."""
        try:
            self.free(request)
            cards, settings = self._asked(models, steps, prompts, unguided)
        except UserError as error:
            raise complain(error) from None
        visitor = self.session.device.visitor(request)
        yield from self.follow(
            request,
            lambda life: self._turn(cards, settings, life, visitor),
            lambda reports: {self.panel: panel(reports[-1], "Measured here")},
            first={},
            failed="The scores could not be measured",
        )

    def _asked(self, models: Sequence[str], steps: Sequence[int], prompts: int | None, unguided: bool):
        """The cards and settings that the fields ask for; UserError for what cannot be measured."""
        self.session.device.require_own(WHAT)
        if not self.session.local:
            raise UserError(f"this public server does not measure scores{OWN_MACHINE}")
        if not 1 <= len(models) <= MAX_MODELS:
            raise UserError(f"choose one to {MAX_MODELS} models")
        if not steps or not set(steps) <= set(STEPS):
            raise UserError("choose at least one number of steps")
        if not prompts or not 1 <= prompts <= MAX_PROMPTS:
            raise UserError(f"choose between 1 and {MAX_PROMPTS} prompts")
        cards = [self.session.catalogue.card(name) for name in models]
        if stranger := next((card for card in cards if not _draws_shapes(card)), None):
            raise UserError(f"{stranger.title} does not draw the shapes world, and its pictures cannot be judged")
        return cards, Settings(steps=tuple(sorted(steps)), num_prompts=prompts, also_unguided=unguided or None)

    def _turn(self, cards: Sequence[ModelCard], settings: Settings, life: Life, visitor: str) -> Iterator[list]:
        """The events of a measurement: texts, and the report at the end."""

        def say(text: str) -> None:
            if life.over.is_set():
                raise Cancelled
            life.tell(text)

        def measured(library: "Library", _) -> None:
            from koala.evaluate import steps
            from koala.evaluate.reports import circumstances

            report = steps.evaluate(library.get_all(cards), settings, library, say)
            report |= circumstances([], library.device, weights=cards)
            life.tell(report | {"command": command(cards, settings)})

        names = [card.name for card in cards]
        requests = [
            GenerationRequest(model=card.name, prompt="shapes", steps=max(settings.steps), images=1) for card in cards
        ]
        work = drawing(requests, cards, "scoring")
        times = KINDS * settings.num_prompts * sum(settings.steps) / max(settings.steps)
        work = replace(work, amount=work.amount * times)
        return self.session.device.turn(names, measured, life, visitor=visitor, work=work, requests=requests)


def _draws_shapes(card: ModelCard) -> bool:
    return card.spec is not None and card.spec.channels == TINY_SDXL.channels


def command(cards: Sequence[ModelCard], settings: Settings) -> str:
    """The command that measures the same from a terminal."""
    words = ["python", "-m", "koala", "eval", "--suite", "steps", "--model", *map(portable_name, cards)]
    words += ["--steps", *map(str, settings.steps), "--num-prompts", str(settings.num_prompts)]
    return shlex.join([*words, *(["--also-unguided"] if settings.also_unguided else []), "--out", "steps.json"])


def panel(report: Mapping, heading: str) -> str:
    """A report as charts and tables."""
    frame, panels = steps_figure.FRAME, report["panels"]
    drawn = [
        frame.svg(steps_figure.spoken(title, path, report), steps_figure.panel(title, path, report))
        for title, path in panels.items()
    ]
    keys = [
        (name, charts.element("path", class_="chart-line", **steps_figure.style(k), d="M0 4h26"))
        for k, name in enumerate(steps_figure.labels(report))
    ]
    tables = {f"{title[:1].upper()}{title[1:]}": _table(report, _score(path)) for title, path in panels.items()}
    tables["Time per picture"] = _table(report, _cost)
    content = base64.b64encode((json.dumps(report, indent=1) + "\n").encode()).decode()
    notes = [f"Measured on {report['date']}.", steps_tables.note(report, "below each score")]
    return HTML.panel(heading, drawn, keys, report["steps"], tables, notes, report["command"], content)


def _table(report: Mapping, cell: Callable[[Mapping], Cell]) -> list[tuple[Cell, list[Cell]]]:
    """A row per model and guidance: its heading, and a cell per number of steps."""
    names = steps_figure.names(report)
    headings = [
        (name, f"{parameters_text(model['parameters'])} parameters, {steps_figure.guided(model['guidance'])}")
        for name, model in zip(names, report["models"], strict=True)
    ]
    cells = [[cell(point) for point in model["points"]] for model in report["models"]]
    return list(zip(headings, cells, strict=True))


def _score(path: Sequence[str]) -> Callable[[Mapping], Cell]:
    def cell(point: Mapping) -> Cell:
        share, low, high = (100 * x for x in steps_figure.value(point["scores"], path))
        return f"{share:.1f} %", f"{low:.0f} to {high:.0f}"

    return cell


def _cost(point: Mapping) -> Cell:
    return duration(point["picture_ms"]), many(point["unet_calls"], "call")


def recorded() -> str:
    """The report that comes with the embedded models."""
    if not RECORDED.is_file():
        return HTML.hint("Nothing scored yet.")
    return panel(json.loads(RECORDED.read_text()), "Recorded: how many steps each model needs")


def build(session: Session) -> StepsScore:
    """Build it below the benchmark."""
    gr.HTML(HTML.heading(), apply_default_css=False)
    return StepsScore(session)
