"""The Distill tab: train a student, watch its training, compare runs, resume or delete them."""

from collections.abc import Iterator, Sequence
from urllib.parse import urlencode

import gradio as gr

from koala.distill.config import DistillConfig
from koala.distill.presets import PRESETS
from koala.distill.run.turns import Drawing
from koala.errors import UserError
from koala.models.locate import availability
from koala.ui import widgets
from koala.ui.distill import curves as distill_curves
from koala.ui.distill import fields as distill_fields
from koala.ui.distill import panel as distill_panel
from koala.ui.distill.panel import Shown
from koala.ui.distill.runs import PUBLIC_MINUTES, Runs, teacher_scores
from koala.ui.messages import complain
from koala.ui.session import Session
from koala.ui.theme import UI

QUIET = {"api_visibility": "private", "show_progress": "hidden"}
CHEAP = QUIET | {"concurrency_limit": None}
INTERVAL = 1.5  # s between two updates while a run goes on
LAST = "last"  # checkpoint to resume from


class Distill:
    """The tab's components and handlers. `tab` is None where it is a page of its own."""

    def __init__(self, session: Session, tab: gr.Tab | None = None):
        self.session = session
        self.runs = Runs(session)
        self.fields: dict[str, gr.components.FormComponent] = {}
        with gr.Row(elem_classes="k-panes kd-panes"):
            with gr.Column(elem_classes="k-controls k-ask kd-ask"):
                self._ask()
            with gr.Column(elem_classes="k-controls k-settings kd-fields"):
                self._settings()
            with gr.Column(elem_classes="k-results"):
                self._results()
        self._wire(tab)
        session.catalogue.before_choosing.append(self.runs.all)
        session.device.around_runs.append(Drawing(self.runs.root))  # a run waits meanwhile
        self.runs.all()  # which offers the students of earlier runs as models

    # --- components

    def _ask(self) -> None:
        first = self.runs.presets[0]
        self.preset = gr.Radio(
            [(p.title, p.name) for p in self.runs.presets],
            value=first.name,
            label="What to run",
            elem_id="kd-preset",
        )
        self.described = gr.HTML(self.describe(first.name), apply_default_css=False)
        self._field("student_spec", first.config)
        with gr.Row(elem_classes="k-actions"):
            self.start = gr.Button("Start", variant="primary", elem_id="kd-start", scale=3, min_width=140)
            self.estimate = gr.Button(
                "Estimate", elem_id="kd-estimate", scale=1, min_width=80, visible=self.session.local
            )
        self.takes = gr.HTML("", elem_id="kd-takes", apply_default_css=False)

    def _settings(self) -> None:
        config = self.runs.presets[0].config
        with gr.Accordion("What is distilled", open=False):
            for name in distill_fields.FIRST:
                if name not in self.fields and (self.session.local or name in distill_fields.PUBLIC):
                    self._field(name, config)
        if not self.session.local:
            gr.HTML(
                widgets.bounds(
                    f"A run on this server takes at most {PUBLIC_MINUTES:g} minutes, and only one runs at a time. "
                    "On your own machine the app trains with any teacher, your own pictures and every setting."
                ),
                apply_default_css=False,
            )
            return
        with gr.Accordion("All other settings", open=False, elem_classes="kd-every"):
            for group, names in distill_fields.groups().items():
                gr.HTML(distill_panel.HTML.heading(group), apply_default_css=False)
                for name in names:
                    self._field(name, config)

    def _field(self, name: str, config: DistillConfig) -> None:
        (value,) = distill_fields.shown(config, [name])
        self.fields[name] = distill_fields.component(name, value, self.teachers() if name == "teacher" else ())

    def _results(self) -> None:
        self.standing = gr.HTML(distill_panel.NONE_YET, elem_id="kd-standing", apply_default_css=False)
        with gr.Row(elem_classes="kd-actions"):
            self.stop = gr.Button("Stop", variant="stop", visible=False, elem_id="kd-stop", size="md")
            self.resume = gr.Button("Resume", visible=False, elem_id="kd-resume", size="md")
            self.step = gr.Dropdown(
                [], label="Resume from step", visible=False, elem_id="kd-step", min_width=150, scale=0
            )
            self.reuse = gr.Button("Use its settings", visible=False, elem_id="kd-reuse", size="md")
            self.ask_delete = gr.Button("Delete …", visible=False, elem_id="kd-delete", size="md")
        with gr.Row(visible=False, elem_classes="kd-sure") as self.sure:
            self.question = gr.HTML("", apply_default_css=False)
            self.delete = gr.Button("Delete it", variant="stop", elem_id="kd-delete-it", size="md", min_width=100)
            self.keep = gr.Button("Keep it", elem_id="kd-keep-it", size="md", min_width=100)
        self.all = gr.HTML(
            "", js_on_load=(UI / "distill" / "distill.js").read_text(), elem_id="kd-all-runs", apply_default_css=False
        )
        self.pictures = gr.HTML("", elem_id="kd-pictures", apply_default_css=False)
        self.curves = gr.HTML("", elem_id="kd-curves", apply_default_css=False)
        with gr.Column(visible=False) as self.more:
            with gr.Accordion("Settings of this run", open=False):
                self.about = gr.HTML("", elem_id="kd-about", apply_default_css=False)
            with gr.Accordion("Validation by noise", open=False):
                self.noise = gr.HTML("", elem_id="kd-noise", apply_default_css=False)
            with gr.Accordion("Learning rate, gradients and speed", open=False):
                self.pace = gr.HTML("", elem_id="kd-pace", apply_default_css=False)
            with gr.Accordion("Output of the process", open=False, visible=self.session.local):
                self.log = gr.HTML("", elem_id="kd-log", apply_default_css=False)
        self.timer = gr.Timer(INTERVAL, active=False)
        self.chosen = gr.BrowserState("", storage_key="koala-distill", secret="koala")
        self.compared = gr.State("")
        self.sent = gr.State({})  # hashes of what this page shows; only what changed is sent again

    def _wire(self, tab: gr.Tab | None) -> None:
        page = [self.chosen, self.compared, self.sent]
        panels = [self.standing, self.all, self.curves, self.pictures, self.about, self.noise, self.pace, self.log]
        buttons = [self.start, self.stop, self.resume, self.step, self.reuse, self.ask_delete, self.sure, self.more]
        shown = [*panels, *buttons, self.timer, *page]
        fields = list(self.fields.values())
        self.timer.tick(self.look, page, shown, queue=False, **CHEAP)
        if tab:
            tab.select(self.turn, page, shown, queue=False, **CHEAP)
            if teacher := self.fields.get("teacher"):
                tab.select(lambda: gr.Dropdown(self.teachers()), None, teacher, queue=False, **CHEAP)
        self.all.click(self.choose, page, shown, queue=False, **CHEAP)
        self.preset.input(self.fill, self.preset, [self.described, *fields], queue=False, **CHEAP)
        # queued, without a limit: Gradio drops the message of an error that is raised outside its queue
        self.start.click(self.begin, [self.preset, *page, *fields], shown, **CHEAP)
        self.estimate.click(self.forecast, [self.preset, *fields], self.takes, **QUIET)
        self.stop.click(self.halt, page, shown, **CHEAP)
        self.resume.click(self.go_on, [self.step, *page], shown, **CHEAP)
        self.reuse.click(self.take, self.chosen, [self.preset, self.described, *fields], **CHEAP)
        self.ask_delete.click(self.ask, self.chosen, [self.sure, self.question], **CHEAP)
        self.keep.click(lambda: gr.Row(visible=False), None, self.sure, queue=False, **CHEAP)
        self.delete.click(self.remove, page, shown, **CHEAP)

    # --- settings

    def teachers(self) -> list[tuple[str, str]]:
        """(title, name) of the models of this machine that are not students."""
        cards = [(title, self.session.catalogue.card(name)) for title, name in self.session.catalogue.choices()]
        return [(title, card.name) for title, card in cards if not card.teacher and availability(card)[0]]

    def describe(self, preset: str | None) -> str:
        """What a preset does, as HTML; None stands for the settings of an earlier run."""
        text = PRESETS[preset].text if preset in PRESETS else "The settings of an earlier run; change what you like."
        return distill_panel.HTML.paragraph(text)

    def fill(self, preset: str | None) -> tuple:
        """A preset was chosen: fill in its settings. Without one the fields stay as they are."""
        if preset not in PRESETS:
            return self.describe(preset), *[gr.skip()] * len(self.fields)
        return self.describe(preset), *distill_fields.shown(PRESETS[preset].config, list(self.fields))

    def take(self, chosen: str) -> tuple:
        """Fill in the shown run's settings, to start another like it."""
        try:
            config = self.runs.find(chosen).config()
        except UserError as error:
            raise complain(error) from None
        return None, self.describe(None), *distill_fields.shown(config, list(self.fields))

    # --- updates

    def look(self, chosen: str, compared: str, sent: dict) -> dict:
        """What has changed since the last update of the page."""
        everything = self.runs.all()
        by_name = {shown.name: shown for shown in everything}
        live = next((shown for shown in everything if shown.alive), None)
        if chosen not in by_name:
            chosen = live.name if live else everything[0].name if everything else ""
        compared = compared if compared in by_name and compared != chosen else ""
        shown = by_name.get(chosen)
        values = self._values(shown, by_name.get(compared), everything)
        marks = {name: hash(repr(value)) for name, value in values.items()}
        updates = {getattr(self, name): value for name, value in values.items() if sent.get(name) != marks[name]}
        return updates | {self.chosen: chosen, self.compared: compared, self.sent: marks}

    def _values(self, shown: Shown | None, second: Shown | None, everything: Sequence[Shown]) -> dict:
        """The values of all components, by name."""
        pair = [(s.name, s.metrics) for s in (shown, second) if s]
        live, local = shown is not None and shown.alive, self.session.local
        readable = shown is not None and shown.config is not None
        steps = shown.run.checkpoints() if shown is not None and not live else []
        unfinished = shown.status.state != "done" if readable else bool(steps)  # resuming may repair a damaged run
        resumable = local and not live and unfinished
        runs = distill_panel.table(everything, shown.name, second.name if second else "") if everything[1:] else ""
        link = self._link(shown) if readable and shown.model else ""
        folder = str(shown.run.path) if shown and local else ""
        return {
            "standing": distill_panel.standing(shown, link, resumable=resumable and bool(steps)),
            "all": runs,
            "curves": distill_curves.terms(pair, teacher_scores(shown.config)) if readable else "",
            "pictures": distill_panel.pictures(shown),
            "about": distill_panel.about(shown, self.runs.presets, folder),
            "noise": distill_curves.by_noise(shown.metrics) if readable else "",
            "pace": distill_curves.pace(pair) if readable else "",
            "log": distill_panel.log(shown) if local else "",
            "more": gr.update(visible=readable),
            "start": gr.update(interactive=not any(s.alive for s in everything)),
            "stop": gr.update(visible=live, interactive=live and shown.status.state != distill_panel.STOPPING),
            "resume": gr.update(value="Resume" if steps else "Start again", visible=resumable),
            "step": gr.update(
                choices=[LAST, *(str(s) for s in reversed(steps))], value=LAST, visible=resumable and len(steps) > 1
            ),
            "reuse": gr.update(visible=readable and local),
            "ask_delete": gr.update(visible=shown is not None and not live and local),
            "timer": gr.update(active=any(s.alive for s in everything)),
        }

    def _link(self, shown: Shown) -> str:
        """The Compare tab with the student and its teacher."""
        return "?" + urlencode({"models": f"{self.session.catalogue.card(shown.model).teacher},{shown.model}"})

    def turn(self, chosen: str, compared: str, sent: dict) -> dict:
        """The tab was selected: update all of it, as the page may have missed something."""
        return self.look(chosen, compared, {})

    def choose(self, event: gr.EventData, chosen: str, compared: str, sent: dict) -> dict:
        """A run of the list: show it, or draw its curves over those of the shown one; a second click removes them."""
        name = str(event._data.get("run") or "")
        if name:
            return self.look(name, compared, sent) | {self.sure: gr.Row(visible=False)}
        second = str(event._data.get("compared") or "")
        return self.look(chosen, "" if second == compared else second, sent)

    # --- buttons

    def begin(self, request: gr.Request, preset: str | None, chosen: str, compared: str, sent: dict, *values) -> dict:
        """The Start button: start a process and show it at once."""
        try:
            name = self.runs.start(self._config(preset, values), request.session_hash)
        except (UserError, OSError) as error:
            raise complain(error) from None
        return self.look(name, compared, sent) | {self.sure: gr.Row(visible=False)}

    def _config(self, preset: str | None, values: Sequence) -> DistillConfig:
        """The config of the page's fields; UserError names a setting that cannot work."""
        return distill_fields.read(self.runs.base(preset), dict(zip(self.fields, values, strict=True)))

    def forecast(self, preset: str | None, *values) -> Iterator[str]:
        """The Estimate button: measure memory and time for a few seconds."""
        yield distill_panel.HTML.measuring()
        try:
            yield distill_panel.takes(self.runs.estimate(self._config(preset, values)))
        except UserError as error:
            yield ""
            raise complain(error) from None

    def halt(self, request: gr.Request, chosen: str, compared: str, sent: dict) -> dict:
        """The Stop button: the run saves after its current step."""
        try:
            self.runs.stop(chosen, request.session_hash)
        except UserError as error:
            raise complain(error) from None
        return self.look(chosen, compared, sent)

    def go_on(self, step: str, chosen: str, compared: str, sent: dict) -> dict:
        """The Resume button."""
        try:
            self.runs.resume(chosen, None if step in (None, LAST) else int(step))
        except (UserError, OSError) as error:
            raise complain(error) from None
        return self.look(chosen, compared, sent)

    def ask(self, chosen: str) -> tuple:
        """The Delete button: ask first."""
        try:
            run = self.runs.find(chosen)
        except UserError as error:
            raise complain(error) from None
        size = f"{run.size() / 1e6:,.0f} MB"
        text = f"Delete {run.name} for good, with its checkpoints, curves and student ({size})?"
        return gr.Row(visible=True), distill_panel.HTML.paragraph(text)

    def remove(self, chosen: str, compared: str, sent: dict) -> dict:
        """Delete the run, once the question is answered."""
        try:
            self.runs.delete(chosen)
        except (UserError, OSError) as error:
            raise complain(error) from None
        return self.look("", compared, sent) | {self.sure: gr.Row(visible=False)}


def build(session: Session) -> None:
    """Build it inside its gr.Tab."""
    Distill(session, gr.context.Context.block)
