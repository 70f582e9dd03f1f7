"""The Attention tab: draw once with two models, then see what every patch attends to, at any stage, step and head."""

import functools
from collections.abc import Iterator
from contextlib import closing, nullcontext
from pathlib import Path

import gradio as gr

from koala.attention.plan import ordered
from koala.errors import Cancelled, UserError
from koala.models.locate import availability
from koala.ui import limits, stage, widgets
from koala.ui.attention.recording import OWN, PUBLIC_LIMIT, SAME, Asked, Store, budget
from koala.ui.html import macros
from koala.ui.messages import complain, readable, sentence, warn
from koala.ui.model_choice import model_choice
from koala.ui.session import Session
from koala.ui.theme import ASSETS, UI, VIEWER
from koala.ui.token_counter import TokenCounter
from koala.ui.under_way import UnderWay
from koala.unet.specs import STAGES

QUIET = {"api_visibility": "private", "show_progress": "hidden"}
CHEAP = QUIET | {"concurrency_limit": None}
HTML = macros("attention/tab.html")
WITH_ATTENTION = tuple(s for s in STAGES if s not in ("DW-1", "UP-3"))


class Attention:
    """The tab's components and handlers."""

    def __init__(self, session: Session, store: Store):
        self.session, self.store = session, store
        self.active = UnderWay()
        with gr.Row(elem_classes="k-panes"):
            with gr.Column(elem_classes="k-controls k-ask"):
                self._ask()
            with gr.Column(elem_classes="k-controls k-settings"):
                self._settings()
            with gr.Column(elem_classes="k-results"):
                self._results()

        def forget(capture: str) -> None:  # not a method: what Gradio is given here is copied for every page
            store.drop(capture)

        self.capture = gr.State("", delete_callback=forget)
        self._wire()

    # --- layout

    def _ask(self) -> None:
        self.prompt = gr.Textbox(
            label="Prompt",
            value=widgets.EXAMPLES[0],
            lines=2,
            max_lines=6,
            elem_id="kv-prompt",
            html_attributes=gr.InputHTMLAttributes(spellcheck=False),
        )
        self.counted = TokenCounter(self.session)
        with gr.Row(elem_classes="k-actions"):
            self.start = gr.Button("Draw and record", variant="primary", elem_id="kv-start", scale=3, min_width=140)
            self.stop = gr.Button("Stop", variant="stop", elem_id="kv-stop", scale=1, min_width=80)
        self.takes = gr.HTML("", elem_id="kv-takes", apply_default_css=False)
        self.chips = gr.HTML(widgets.chips(), js_on_load=(ASSETS / "chips.js").read_text(), apply_default_css=False)

    def _settings(self) -> None:
        first = self.session.catalogue.card(self.session.models[0])
        self.models: list[gr.Dropdown] = []
        self.steps: list[gr.Slider] = []
        self.guidance: list[gr.Slider] = []
        for slot, label, name in zip("ab", ("First model", "Second model"), self.session.models, strict=True):
            chosen = model_choice(
                self.session.catalogue.card(name),
                self.choices(),
                label=label,
                slot=slot,
                prefix="kv",
                local=self.session.local,
            )
            for into, part in zip((self.models, self.steps, self.guidance), chosen, strict=True):
                into.append(part)
        self.inputs = gr.Radio(
            [("its own picture", OWN), ("the student's, at every step", SAME)],
            value=OWN,
            label="The teacher looks at",
            info="With the same input the network is all that differs, and the teacher takes the student's steps.",
            elem_id="kv-inputs",
        )
        with gr.Row(elem_classes="k-seeds"):
            self.seed = gr.Textbox(label="Seed", value="0", max_lines=1, scale=1, min_width=130, elem_id="kv-seed")
            with gr.Column(scale=1, min_width=150, elem_classes="k-seed-side"):
                self.random = gr.Checkbox(label="Random each time", value=False, elem_id="kv-random")
        with gr.Accordion("What is recorded", open=False):
            self.stages = gr.CheckboxGroup(
                list(WITH_ATTENTION), value=list(WITH_ATTENTION), label="Stages", elem_id="kv-record"
            )
            self.every = gr.Checkbox(
                label="Every layer of a stage",
                value=False,
                info="Otherwise the student's last one, and the teacher's layer that it was cut from.",
                elem_id="kv-every",
            )
            self.words = gr.Checkbox(
                label="Words", value=True, info="Where each word of the prompt is drawn.", elem_id="kv-with-words"
            )
            with gr.Row():
                self.width = gr.Number(label="Width, px", value=first.width, min_width=90, elem_id="kv-width")
                self.height = gr.Number(label="Height, px", value=first.height, min_width=90, elem_id="kv-height")
            gr.HTML(widgets.bounds(limits.largest_picture(local=self.session.local)), apply_default_css=False)
        self.file = gr.File(
            label=f"Open a saved capture{limits.largest_upload(local=self.session.local)}",
            file_types=[".zip"],
            height=84,
            elem_id="kv-open",
            elem_classes="k-drop",
        )

    def _results(self) -> None:
        # Gradio calls these outside its queue; the share of a public app's visitor counts them all the same.
        def look(asked, request: gr.Request):
            return self.look(asked, request)

        def take(asked, request: gr.Request):
            return self.take(asked, request)

        scripts = (*sorted(VIEWER.glob("viewer*.js")), UI / "attention" / "attention.js")
        self.viewer = gr.HTML(
            self.empty(),
            html_template=(VIEWER / "viewer.html").read_text(),
            js_on_load="".join(script.read_text() for script in scripts),
            apply_default_css=False,
            elem_id="kv-viewer",
            server_functions=[look, take],
        )

    @property
    def fields(self) -> list[gr.components.Component]:
        """In the order of Asked, the two models' apart."""
        shown = [self.seed, self.random, *self.steps, *self.guidance, self.width, self.height]
        return [self.prompt, *self.models, *shown, self.stages, self.every, self.words, self.inputs]

    def _wire(self) -> None:
        self.start.click(
            self.run,
            [*self.fields, self.capture],
            [self.viewer, self.seed, self.capture],
            **CHEAP,
        )
        self.stop.click(self.halt, queue=False, **CHEAP)
        self.counted.follow(self.prompt, self.models)
        opened = [self.file, self.prompt, self.viewer, self.capture]
        self.file.upload(self.open, [self.file, self.capture], opened, concurrency_limit=1, **QUIET)
        self.chips.click(self.example, None, self.prompt, **CHEAP)
        chosen = [self.stages, self.every, self.words, self.inputs]
        decides = [*self.models, *self.steps, self.width, self.height, *chosen]
        gr.on([c.change for c in decides], self.forecast, self.fields, self.takes, queue=False, **CHEAP)
        sliders = [*self.steps, *self.guidance]
        gr.on(
            [c.change for c in (*self.models, self.inputs)],
            self.settle,
            [*self.models, self.inputs],
            sliders,
            queue=False,
            **CHEAP,
        )
        size = [self.width, self.height]
        for k, model in enumerate(self.models):
            own = [self.steps[k], self.guidance[k], *(size if k == 0 else [])]
            model.input(functools.partial(self.pick, k), model, own, **CHEAP)

    # --- what can be asked for

    def choices(self) -> list[tuple[str, str]]:
        """Models that are on this machine; other tabs may have made new ones."""
        catalogue = self.session.catalogue
        return [choice for choice in catalogue.choices() if availability(catalogue.card(choice[1]))[0]]

    def example(self, event: gr.EventData) -> str:
        """An example was chosen: its prompt."""
        return str(event._data.get("prompt", ""))

    def pick(self, slot: int, name: str):
        """A model was chosen: it loads in the background; its own steps and guidance, and the first one's size."""
        try:
            card = self.session.catalogue.card(name or "")
            self.session.loader.want(card.name)
        except UserError as error:
            raise complain(error, "Unknown model") from None
        return card.steps, card.guidance, *((card.width, card.height) if slot == 0 else ())

    def settle(self, first: str, second: str, inputs: str):
        """A teacher that is shown the student's input has no steps and no guidance of its own."""
        open_ = [True, True]
        if inputs == SAME:
            try:
                specs = [self.session.catalogue.card(name or "").spec for name in (first, second)]
                student, _ = ordered(*specs)
                open_ = [spec == student for spec in specs]
            except (UserError, AttributeError):
                pass  # the forecast reports the error
        return [gr.Slider(interactive=each) for each in open_] * 2

    def forecast(self, *values) -> str:
        """How much memory a capture of these settings keeps, or why it cannot be made."""
        try:
            plans = Asked.of(values).plans(self.session.catalogue)
        except UserError as error:
            return widgets.problem(readable(error))
        total = sum(p.bytes for p in plans)
        layers = " and ".join(f"{len(p.layers)}" for p in plans)
        steps = " and ".join(dict.fromkeys(f"{p.steps}" for p in plans))
        return HTML.forecast(layers, steps, f"{total / 1e6:,.1f} MB")

    # --- a capture

    def empty(self, *names: str) -> dict:
        """The viewer before a capture of these models, or of the app's own; UserError for an unknown name."""
        cards = [self.session.catalogue.card(n) for n in names or self.session.models]
        return {
            "phase": "empty",
            "status": "Draw and record, then point at a patch of either picture. Ctrl+Enter begins, Esc stops.",
            "width": cards[0].width,
            "height": cards[0].height,
            "models": [{"title": c.title} for c in cards],
        }

    def run(self, request: gr.Request, *values) -> Iterator[dict]:
        """The button: both pictures as they are drawn, then everything that was recorded, at once."""
        *given, before = values
        asked, catalogue = Asked.of(given), self.session.catalogue
        try:
            asked.plans(catalogue)  # says at once what cannot be recorded
            requests = asked.requests(catalogue)
        except UserError as error:
            raise complain(error) from None
        cards, visitor = [catalogue.card(r.model) for r in requests], self.session.device.visitor(request)
        show, bare = stage.Stage(requests, cards), self.empty(*(c.name for c in cards))
        with self.active.run(request.session_hash) as life:
            first = {self.seed: str(requests[0].seed)}
            recording = asked.recording(public=not self.session.local)
            draw, ways = recording.draw, {"visitor": visitor, "kind": "attention"}
            try:
                with closing(self.session.device.run(requests, life, draw, **ways)) as updates:
                    for update in updates:
                        if update.status:
                            show.say(update.status)
                        for position, step in update.steps.items():
                            show.step(position, step)
                        for result, _ in update.results.values():
                            capture = result
                        yield first | {self.viewer: show.value}
                        first = {}
            except Cancelled:
                back = self._back(before) or bare | {"phase": "stopped"}
                yield {self.viewer: back | {"status": "Stopped."}}
                return
            except Exception as error:
                message = readable(error)
                back = self._back(before)
                still = f"The last run failed, and what you see was recorded before it. {sentence(message)}"
                why = {"problem": still} if back else {"status": sentence(message)}
                yield {self.viewer: (back or bare | {"phase": "failed"}) | why}
                raise complain(UserError(message), "The run failed") from None
        from koala.attention import view  # torch, which is there by now

        new = self.store.add(capture)
        self.store.drop(before)
        yield {self.viewer: view.value(new, capture), self.capture: new}

    def _back(self, before: str) -> dict | None:
        """The capture before a run that was stopped or failed, if it is still kept."""
        try:
            capture = self.store.get(before)
        except UserError:
            return None
        from koala.attention import view

        return view.value(before, capture)

    def halt(self, request: gr.Request) -> None:
        """The Stop button: the page shows at once that the run has stopped; a run that waits leaves the line."""
        self.active.stop(request.session_hash)

    # --- what the viewer asks for

    def look(self, asked: object, request: gr.Request | None = None) -> dict:
        """The maps of both models for what the page shows, or a `problem`."""
        from koala.attention import view

        return self._answer(view.look, asked, request)

    def take(self, asked: object, request: gr.Request | None = None) -> dict:
        """A file of what the page shows: its name, type and content or path, or a `problem`."""
        from koala.ui.attention import files as attention_files

        return self._answer(attention_files.take, asked, request)

    def open(self, file: str, before: str) -> dict:
        """A saved capture; one that cannot be opened leaves the viewer as it is."""
        from koala.attention import archive, view

        try:
            if not file:
                raise UserError("no file was sent; choose a capture that was saved here, a .zip")
            capture = archive.load(Path(file), budget(public=not self.session.local))
        except Exception as error:
            warn(readable(error), "This capture cannot be opened")
            return {self.file: None}
        self.store.drop(before)
        new = self.store.add(capture)
        shown = {self.viewer: view.value(new, capture), self.capture: new}
        return {self.file: None, self.prompt: capture.prompt or gr.skip(), **shown}

    def _answer(self, work, asked: object, request: gr.Request | None) -> dict:
        share = self.session.device.share
        try:
            if not isinstance(asked, dict):
                raise UserError("the page asked for nothing; reload it")
            with share.without_device(request) if share else nullcontext():
                return work(self.store.get(asked.get("id")), asked)
        except Exception as error:
            return {"problem": readable(error)}


def build(session: Session) -> None:
    """Inside its gr.Tab; choosing the tab renews the forecast and the lists of models."""
    tab = Attention(session, Store() if session.local else Store(PUBLIC_LIMIT))
    own_tab = gr.context.Context.block
    own_tab.select(tab.forecast, tab.fields, tab.takes, queue=False, **CHEAP)
    own_tab.select(lambda: [gr.Dropdown(tab.choices())] * 2, None, tab.models, queue=False, **CHEAP)
