"""The Compare tab: one prompt, two to four models, the same noise."""

import functools
import secrets
from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import zip_longest

import gradio as gr

from koala.errors import Cancelled, UserError
from koala.presets import PRESETS
from koala.request import MAX_IMAGES, MAX_SEED
from koala.sampling.resolve import same_noise
from koala.sampling.result import read_png
from koala.ui import settings, stage, widgets
from koala.ui.compare import denoising
from koala.ui.compare import history as visits
from koala.ui.compare.form import Form
from koala.ui.messages import complain, readable, sentence, warn
from koala.ui.session import Session
from koala.ui.settings import FIELDS, MORE, SLOTS
from koala.ui.theme import UI
from koala.ui.under_way import UnderWay

QUIET = {"api_visibility": "private", "show_progress": "hidden"}  # for every event that is not an endpoint
SCRIPTS = ("nodes.js", "denoising.js", "zoom.js", "difference.js", "stage.js")  # of the stage; the last uses the others
CHEAP = QUIET | {"concurrency_limit": None}


class Compare:
    """The tab's components and handlers."""

    def __init__(self, session: Session):
        self.session = session
        self.active = UnderWay()
        with gr.Row(elem_classes="k-panes"):
            self.form = Form(session)
            with gr.Column(elem_classes="k-results"):
                self._results()
        self.fields = self.form.fields
        self.history = gr.State([])
        self.last_seed = gr.State("")
        self._wire()

    def _results(self) -> None:
        self.states = gr.HTML(self.show_states(), elem_id="k-state", apply_default_css=False)
        self.download = gr.Button("Download", visible=False, size="sm", elem_id="k-download")
        self.stage = gr.HTML(
            self.empty(),
            html_template=(UI / "compare" / "stage.html").read_text(),
            js_on_load="".join((UI / "compare" / name).read_text() for name in SCRIPTS),
            apply_default_css=False,
            elem_id="k-stage",
        )
        self.timing = gr.HTML("", elem_id="k-timing-block", apply_default_css=False)
        self.verdict = gr.HTML("", elem_id="k-verdict-block", apply_default_css=False)
        self.strip = gr.HTML(
            [],
            html_template='<section class="k-panel k-history" hidden><h3>This visit</h3><ol></ol></section>',
            js_on_load=(UI / "compare" / "history.js").read_text(),
            apply_default_css=False,
        )
        self.timer = gr.Timer(1.0)

    def _wire(self) -> None:
        form, models = self.form, self.form.models
        fields = [self.fields[name] for name in FIELDS]
        panels = [self.stage, self.timing, self.verdict]
        form.generate.click(
            self.run,
            [*fields, form.random, self.history],
            [*panels, self.fields["seed"], self.strip, self.history, self.last_seed],
            trigger_mode="once",
            **CHEAP,
        )
        form.stop.click(self.halt, queue=False, **CHEAP)
        preset = self.fields["preset"]
        preset.change(self.explain, preset, preset, **CHEAP)
        preset.input(self.guide, [preset, *models, *form.guidances], form.guidances, **CHEAP)
        form.chips.click(self.example, None, self.fields["prompt"], **CHEAP)
        form.reuse.click(self.reuse_seed, self.last_seed, [self.fields["seed"], form.random], **CHEAP)
        form.upload.upload(self.restore, form.upload, [*form.filled, form.random, form.upload], **CHEAP)
        self.strip.click(self.again, self.history, [*panels, *form.filled, form.random], **CHEAP)
        self.timer.tick(self.tick, models, [self.states, self.download, self.timer], **CHEAP)
        self.download.click(self.fetch, models, [self.states, self.download, self.timer], **CHEAP)
        form.counted.follow(self.fields["prompt"], models)
        form.counted_negative.follow(self.fields["negative_prompt"], models)
        first = self.session.catalogue.card(self.session.models[0])
        for slot in SLOTS:
            own = [self.fields[name] for name in settings.defaults(first, slot)]
            self.fields[f"model_{slot}"].input(
                functools.partial(self.pick, slot),
                [*models, self.stage],
                [*own, self.fields["negative_prompt"], self.stage, self.timer],
                **CHEAP,
            )
        form.add.click(self.one_more, [*models, self.stage], [*form.filled, self.stage, self.timer], **CHEAP)
        for slot, button in zip(MORE, form.removals, strict=True):
            button.click(
                functools.partial(self.one_less, slot), [*models, self.stage], [*form.filled, self.stage], **CHEAP
            )

    # --- handlers

    def example(self, event: gr.EventData) -> str:
        """An example was chosen: its prompt."""
        return str(event._data.get("prompt", ""))

    def explain(self, preset: str):
        """What a preset does, below it."""
        known = PRESETS.get(preset)
        return gr.Dropdown(info=known.label.capitalize()) if known else gr.skip()

    def guide(self, preset: str, *models_then_guidances: object) -> list:
        """A preset was chosen: without guidance the field becomes 1, and afterwards the model's own value again."""
        half = len(models_then_guidances) // 2
        values = []
        for name, guidance in zip(models_then_guidances[:half], models_then_guidances[half:], strict=True):
            try:
                card, chosen = self.session.catalogue.card(name), PRESETS[preset]
            except (UserError, KeyError):
                values.append(gr.skip())  # a hidden model; else the run itself reports the error
                continue
            unguided = chosen.guided is None
            if unguided and guidance > 1:
                values.append(1)
            elif not unguided and guidance <= 1 < card.guidance:
                values.append(card.guidance)
            else:
                values.append(gr.skip())
        return values

    def empty(self, *names: str) -> dict:
        """The stage before a run of these models, or of the app's own; UserError for an unknown name."""
        cards = [self.session.catalogue.card(n) for n in names or self.session.models]
        models = [
            {"name": c.name, "title": c.title, "step": 0, "steps": 0, "preview": None, "images": []} for c in cards
        ]
        return {
            "phase": "empty",
            "status": "Press Generate, or Ctrl+Enter. Esc stops.",
            "width": cards[0].width,
            "height": cards[0].height,
            "models": models,
        }

    def show_states(self, *names: str) -> str:
        """The states of these models, or of the app's own, as HTML; unknown names are left out."""
        loader, states = self.session.loader, []
        for name in names or self.session.models:
            try:
                states.append(loader.state(name))
            except UserError:
                continue  # the run itself reports the error
        return widgets.states(states, self.session.note, loader.advice)

    def tick(self, *models: str | None):
        """Every second while a model loads: states, the Download button if a model is missing, the timer."""
        names = [n for n in models if n]
        try:
            missing = self.session.loader.downloadable(names)
        except UserError:
            missing = []  # the run itself reports the error
        sizes = [c.download_bytes for c in missing]
        size = f" ({sum(sizes) / 1e9:.1f} GB)" if all(sizes) else ""
        label = f"Download {' and '.join(c.title for c in missing)}{size}"
        return (
            self.show_states(*names),
            gr.Button(label, visible=bool(missing)),
            gr.Timer(active=not self.session.loader.settled),
        )

    def fetch(self, *models: str | None):
        """The Download button: fetches the chosen models that are missing from the hub, in the background."""
        try:
            for card in self.session.loader.downloadable([n for n in models if n]):
                self.session.loader.download(card.name)
        except UserError as error:
            raise complain(error) from None
        return *self.tick(*models)[:2], gr.Timer(active=True)

    def choices(self):
        """The models to choose from, for every list: other tabs may have made new ones."""
        choices = self.session.catalogue.choices(exports=True)
        return [gr.Dropdown(choices=choices) for _ in SLOTS]

    def pick(self, slot: str, *models_then_stage: object):
        """Another model was chosen: it loads in the background; its own settings."""
        *models, shown = models_then_stage
        name = models[SLOTS.index(slot)]
        try:
            card = self.session.catalogue.card(name or "")
            self.session.loader.want(card.name)
            blank = self.blank(models, shown)
        except UserError as error:
            raise complain(error, "Unknown model") from None
        hint = gr.Textbox(
            placeholder=f"{card.title}'s authors use: {card.negative_prompt}" if card.negative_prompt else ""
        )
        return *settings.defaults(card, slot).values(), hint, blank, gr.Timer(active=True)

    def blank(self, models: Sequence[str | None], shown: dict):
        """The empty stage of these models, unless pictures are shown."""
        return self.empty(*(name for name in models if name)) if shown["phase"] == "empty" else gr.skip()

    def one_more(self, *models_then_stage: object):
        """The Add button: one more model to compare with, which loads in the background."""
        *models, shown = models_then_stage
        slot = next(slot for slot, name in zip(SLOTS, models, strict=True) if slot in MORE and not name)
        try:
            card = self.session.catalogue.card(self.form.suggested(models))
            self.session.loader.want(card.name)
            models[SLOTS.index(slot)] = card.name
            blank = self.blank(models, shown)
        except UserError as error:
            raise complain(error) from None
        values = dict(zip((f"model_{slot}" for slot in MORE), models[2:], strict=True))
        return *self.form.fill(values | settings.defaults(card, slot)), blank, gr.Timer(active=True)

    def one_less(self, slot: str, *models_then_stage: object):
        """A Remove button was pressed: take its model out of the comparison."""
        *models, shown = models_then_stage
        models[SLOTS.index(slot)] = None
        try:
            blank = self.blank(models, shown)
        except UserError:
            blank = gr.skip()  # the run itself reports the error
        values = dict(zip((f"model_{slot}" for slot in MORE), models[2:], strict=True))
        return *self.form.fill(values), blank

    def reuse_seed(self, last: str):
        """The last run's seed goes into its field and Random is turned off; before the first run only a notice."""
        if not last:
            gr.Info("There is no last seed yet; generate once.")
            return gr.skip(), gr.skip()
        return last, False

    def run(self, request: gr.Request, *values) -> Iterator[dict]:
        """The Generate button: the pictures as they are drawn, then the times and the verdict."""
        *given, random, history = values
        fields, catalogue = dict(zip(FIELDS, given, strict=True)), self.session.catalogue
        if random:
            fields["seed"] = str(secrets.randbelow(MAX_SEED + 2 - MAX_IMAGES))
        try:
            requests = [catalogue.check(r) for r in settings.to_requests(fields, catalogue.card)]
            cards = [catalogue.card(r.model) for r in requests]
            requests = same_noise(requests, cards)
        except UserError as error:
            raise complain(error) from None
        show, visitor = stage.Stage(requests, cards), self.session.device.visitor(request)
        results, files = {}, {}
        with self.active.run(request.session_hash) as life:
            first = {self.fields["seed"]: str(requests[0].seed), self.timing: "", self.verdict: ""}
            try:
                with closing(self.session.device.run(requests, life, visitor=visitor)) as updates:
                    for update in updates:
                        if update.status:
                            show.say(update.status)
                        for position, step in update.steps.items():
                            show.step(position, step)
                        for position, result in update.results.items():
                            results[position], files[position] = result, stage.save(result, requests)
                            show.result(position, result, files[position], denoising.strip(result))
                        yield first | {self.stage: show.value}
                        first = {}
            except Cancelled:
                yield {self.stage: show.stopped()}
                return
            except Exception as error:
                message = readable(error)
                yield {self.stage: show.say(sentence(message), "failed")}
                raise complain(UserError(message), "The run failed") from None
        ordered = [results[k] for k in sorted(results)]
        if requests[0].lora:
            self.session.loras[ordered[0].lora_sha256] = requests[0].lora
        done = visits.finished(show, ordered, [files[k] for k in sorted(files)], fields, catalogue.card)
        history = visits.added(done, history)
        yield {
            self.stage: done["stage"],
            self.timing: done["timing"],
            self.verdict: done["verdict"],
            self.history: history,
            self.strip: visits.strip(history),
            self.last_seed: done["fields"]["seed"],
        }

    def halt(self, request: gr.Request) -> None:
        """The Stop button: the page shows at once that the run has stopped; a run that waits leaves the line."""
        self.active.stop(request.session_hash)

    def again(self, history: list, event: gr.EventData):
        """A comparison of this visit: its pictures and its settings."""
        done = visits.find(history, event._data.get("id"))
        if done is None:
            return [gr.skip()] * (3 + len(self.form.filled) + 1)
        return [done["stage"], done["timing"], done["verdict"], *self.form.fill(done["fields"]), False]

    def restore(self, file: str | None) -> Iterator[list]:
        """A dropped PNG: its whole request goes back into the fields. The drop zone is emptied in any case."""
        yield [gr.skip()] * (len(self.form.filled) + 1) + [None]
        try:
            if not file:
                raise UserError("no file was sent; choose a picture that was saved here, a PNG")
            metadata = read_png(file)
            drawn = [metadata["request"], *metadata["compared"]]
            own, *compared = zip_longest(drawn, metadata["folders"][: len(drawn)])
            requests = [self.session.catalogue.of_picture(*one) for one in compared[: len(SLOTS)] or [own]]
            if len(compared) > len(SLOTS):
                warn(f"{len(compared)} models were compared; the first {len(SLOTS)} of them are restored", "Models")
            values = settings.from_requests(requests, self.session.catalogue.card)
        except UserError as error:
            raise complain(error, "Nothing was restored") from None
        values |= {"seed": str(metadata["request"].seed), "images": metadata["request"].images}
        values["lora"] = self.session.loras.get(metadata["lora_sha256"])
        if requests[0].lora and not values["lora"]:
            warn(f"this picture was drawn with the LoRA {requests[0].lora}; choose that file under Advanced", "LoRA")
        gr.Info("Settings restored. Generate draws the same picture again.")
        yield [*self.form.fill(values), False, None]

    def open_link(self, request: gr.Request):
        """The query of a link -> the fields; a notice names what was ignored."""
        values, complaints = settings.from_query(dict(request.query_params), self.session.catalogue.card)
        for complaint in complaints:
            warn(complaint, "Part of this link was ignored")
        random = False if "seed" in values else gr.skip()
        return [*self.form.fill(values), random]


def build(session: Session) -> None:
    """Inside its gr.Tab. The query of a link fills the fields; choosing the tab renews the lists of models."""
    tab = Compare(session)
    page, own_tab = gr.context.Context.root_block, gr.context.Context.block
    page.load(tab.open_link, None, [*tab.form.filled, tab.form.random], **CHEAP)
    gr.on([page.load, own_tab.select], tab.choices, None, tab.form.models, queue=False, **CHEAP)
