"""The Compare tab: one prompt, two models, the same noise."""

import functools
import secrets
from collections.abc import Iterator
from contextlib import closing
from itertools import zip_longest

import gradio as gr

from koala.errors import Cancelled, UserError
from koala.presets import PRESETS
from koala.request import MAX_IMAGES, MAX_LORA_STRENGTH, MAX_SEED, SCHEDULERS
from koala.sampling.resolve import same_noise
from koala.sampling.result import read_png
from koala.ui import limits, settings, stage, widgets
from koala.ui.compare import denoising
from koala.ui.compare import history as visits
from koala.ui.messages import complain, readable, sentence, warn
from koala.ui.model_choice import model_choice
from koala.ui.session import Session
from koala.ui.settings import FIELDS, OWN_SCHEDULER
from koala.ui.theme import ASSETS, UI
from koala.ui.token_counter import TokenCounter
from koala.ui.under_way import UnderWay

QUIET = {"api_visibility": "private", "show_progress": "hidden"}  # for every event that is not an endpoint
CHEAP = QUIET | {"concurrency_limit": None}


class Compare:
    """The tab's components and handlers."""

    def __init__(self, session: Session):
        self.session = session
        self.active = UnderWay()
        self.fields: dict[str, gr.components.Component] = {}
        with gr.Row(elem_classes="k-panes"):
            with gr.Column(elem_classes="k-controls k-ask"):
                self._ask()
            with gr.Column(elem_classes="k-controls k-settings"):
                self._settings()
            with gr.Column(elem_classes="k-results"):
                self._results()
        self.history = gr.State([])
        self.last_seed = gr.State("")
        self._wire()

    # --- layout

    def _ask(self) -> None:
        self.fields["prompt"] = gr.Textbox(
            label="Prompt",
            value=widgets.EXAMPLES[0],
            lines=3,
            max_lines=6,
            elem_id="k-prompt",
            placeholder="a red circle left of a blue square",
            html_attributes=gr.InputHTMLAttributes(spellcheck=False),
        )
        self.counted = TokenCounter(self.session)
        with gr.Row(elem_classes="k-actions"):
            self.generate = gr.Button("Generate", variant="primary", elem_id="k-generate", scale=3, min_width=140)
            self.stop = gr.Button("Stop", variant="stop", elem_id="k-stop", scale=1, min_width=80)
        self.chips = gr.HTML(widgets.chips(), js_on_load=(ASSETS / "chips.js").read_text(), apply_default_css=False)

    def _settings(self) -> None:
        own = self.fields
        for slot, label, name in zip("ab", ("First model", "Second model"), self.session.models, strict=True):
            own[f"model_{slot}"], own[f"steps_{slot}"], own[f"guidance_{slot}"] = model_choice(
                self.session.catalogue.card(name),
                self.session.catalogue.choices(exports=True),
                label=label,
                slot=slot,
                prefix="k",
                local=self.session.local,
            )
        with gr.Row(elem_classes="k-seeds"):
            own["seed"] = gr.Textbox(label="Seed", value="0", max_lines=1, scale=1, min_width=130, elem_id="k-seed")
            with gr.Column(scale=1, min_width=150, elem_classes="k-seed-side"):
                self.random = gr.Checkbox(label="Random each time", value=True, elem_id="k-random")
                self.reuse = gr.Button("Reuse last seed", size="sm", elem_id="k-reuse")
        first = self.session.catalogue.card(self.session.models[0])
        with gr.Accordion("Advanced", open=False, elem_classes="k-advanced"):
            own["negative_prompt"] = gr.Textbox(
                label="Negative prompt",
                value="",
                lines=2,
                info="What the picture should not show; needs guidance above 1.",
            )
            self.counted_negative = TokenCounter(self.session)
            own["scheduler"] = gr.Dropdown(
                [("each model's own", OWN_SCHEDULER), *SCHEDULERS], value=OWN_SCHEDULER, label="Scheduler"
            )
            with gr.Row():
                own["width"] = gr.Number(label="Width, px", value=first.width, min_width=90)
                own["height"] = gr.Number(label="Height, px", value=first.height, min_width=90)
                own["images"] = gr.Number(label="Images", value=1, min_width=90)
            gr.HTML(widgets.bounds(limits.most_pictures(local=self.session.local)), apply_default_css=False)
            own["preset"] = gr.Dropdown(
                list(PRESETS),
                value="quality",
                label="Preset",
                info=PRESETS["quality"].label.capitalize(),
                elem_id="k-preset",
            )
            own["lora"] = gr.File(
                label="LoRA for SDXL (.safetensors)",
                file_types=[".safetensors"],
                height=84,
                elem_id="k-lora",
                elem_classes="k-drop",
                visible=self.session.local,
            )
            own["lora_strength"] = gr.Slider(
                -MAX_LORA_STRENGTH,
                MAX_LORA_STRENGTH,
                value=1,
                step=0.05,
                label="LoRA strength",
                elem_id="k-lora-strength",
                visible=self.session.local,
            )
        self.upload = gr.File(
            label=f"Restore settings from a saved PNG{limits.largest_upload(local=self.session.local)}",
            file_types=[".png"],
            height=84,
            elem_id="k-restore",
            elem_classes="k-drop",
        )

    def _results(self) -> None:
        self.states = gr.HTML(self.show_states(), elem_id="k-state", apply_default_css=False)
        self.download = gr.Button("Download", visible=False, size="sm", elem_id="k-download")
        self.stage = gr.HTML(
            self.empty(),
            html_template=(UI / "compare" / "stage.html").read_text(),
            js_on_load="".join((UI / "compare" / name).read_text() for name in ("denoising.js", "stage.js")),
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
        fields = [self.fields[name] for name in FIELDS]
        panels = [self.stage, self.timing, self.verdict]
        self.generate.click(
            self.run,
            [*fields, self.random, self.history],
            [*panels, self.fields["seed"], self.strip, self.history, self.last_seed],
            trigger_mode="once",
            **CHEAP,
        )
        self.stop.click(self.halt, queue=False, **CHEAP)
        preset = self.fields["preset"]
        preset.change(self.explain, preset, preset, **CHEAP)
        guidances = [self.fields["guidance_a"], self.fields["guidance_b"]]
        models = [self.fields["model_a"], self.fields["model_b"]]
        preset.input(self.guide, [preset, *models, *guidances], guidances, **CHEAP)
        self.chips.click(self.example, None, self.fields["prompt"], **CHEAP)
        self.reuse.click(self.reuse_seed, self.last_seed, [self.fields["seed"], self.random], **CHEAP)
        self.upload.upload(self.restore, self.upload, [*fields, self.random, self.upload], **CHEAP)
        self.strip.click(self.again, self.history, [*panels, *fields, self.random], **CHEAP)
        pair = [self.fields["model_a"], self.fields["model_b"]]
        self.timer.tick(self.tick, pair, [self.states, self.download, self.timer], **CHEAP)
        self.download.click(self.fetch, pair, [self.states, self.download, self.timer], **CHEAP)
        self.counted.follow(self.fields["prompt"], pair)
        self.counted_negative.follow(self.fields["negative_prompt"], pair)
        chosen = [self.fields["model_a"], self.fields["model_b"], self.stage]
        first = self.session.catalogue.card(self.session.models[0])
        for slot in "ab":
            own = [self.fields[name] for name in settings.defaults(first, slot)]
            self.fields[f"model_{slot}"].input(
                functools.partial(self.pick, slot),
                chosen,
                [*own, self.fields["negative_prompt"], self.stage, self.timer],
                **CHEAP,
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
                values.append(gr.skip())  # the run itself reports the error
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

    def tick(self, model_a: str, model_b: str):
        """Every second while a model loads: states, the Download button if a model is missing, the timer."""
        names = [n for n in (model_a, model_b) if n]
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

    def fetch(self, model_a: str, model_b: str):
        """The Download button: fetches the chosen models that are missing from the hub, in the background."""
        try:
            for card in self.session.loader.downloadable([model_a, model_b]):
                self.session.loader.download(card.name)
        except UserError as error:
            raise complain(error) from None
        return *self.tick(model_a, model_b)[:2], gr.Timer(active=True)

    def choices(self):
        """The models to choose from, for both lists: other tabs may have made new ones."""
        choices = self.session.catalogue.choices(exports=True)
        return gr.Dropdown(choices=choices), gr.Dropdown(choices=choices)

    def pick(self, slot: str, model_a: str, model_b: str, shown: dict):
        """Another model was chosen: it loads in the background; its own settings."""
        name = model_a if slot == "a" else model_b
        try:
            card = self.session.catalogue.card(name or "")
            self.session.loader.want(card.name)
            blank = self.empty(model_a, model_b) if shown["phase"] == "empty" else gr.skip()
        except UserError as error:
            raise complain(error, "Unknown model") from None
        hint = gr.Textbox(
            placeholder=f"{card.title}'s authors use: {card.negative_prompt}" if card.negative_prompt else ""
        )
        return *settings.defaults(card, slot).values(), hint, blank, gr.Timer(active=True)

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
            return [gr.skip()] * (3 + len(FIELDS) + 1)
        fields = [done["fields"][name] for name in FIELDS]
        return [done["stage"], done["timing"], done["verdict"], *fields, False]

    def restore(self, file: str | None) -> Iterator[list]:
        """A dropped PNG: its whole request goes back into the fields. The drop zone is emptied in any case."""
        yield [gr.skip()] * (len(FIELDS) + 1) + [None]
        try:
            if not file:
                raise UserError("no file was sent; choose a picture that was saved here, a PNG")
            metadata = read_png(file)
            drawn = [metadata["request"], *metadata["compared"]]
            own, *compared = zip_longest(drawn, metadata["folders"][: len(drawn)])
            requests = [self.session.catalogue.of_picture(*one) for one in compared[:2] or [own]]
            values = settings.from_requests(requests, self.session.catalogue.card)
        except UserError as error:
            raise complain(error, "Nothing was restored") from None
        values |= {"seed": str(metadata["request"].seed), "images": metadata["request"].images}
        values["lora"] = self.session.loras.get(metadata["lora_sha256"])
        if requests[0].lora and not values["lora"]:
            warn(f"this picture was drawn with the LoRA {requests[0].lora}; choose that file under Advanced", "LoRA")
        gr.Info("Settings restored. Generate draws the same picture again.")
        yield [*(values.get(name, gr.skip()) for name in FIELDS), False, None]

    def open_link(self, request: gr.Request):
        """The query of a link -> the fields; a notice names what was ignored."""
        values, complaints = settings.from_query(dict(request.query_params), self.session.catalogue.card)
        for complaint in complaints:
            warn(complaint, "Part of this link was ignored")
        random = False if "seed" in values else gr.skip()
        return [*(values.get(name, gr.skip()) for name in FIELDS), random]


def build(session: Session) -> None:
    """Inside its gr.Tab. The query of a link fills the fields; choosing the tab renews the lists of models."""
    tab = Compare(session)
    fields = [tab.fields[name] for name in FIELDS]
    page, own_tab = gr.context.Context.root_block, gr.context.Context.block
    page.load(tab.open_link, None, [*fields, tab.random], **CHEAP)
    pair = [tab.fields["model_a"], tab.fields["model_b"]]
    gr.on([page.load, own_tab.select], tab.choices, None, pair, queue=False, **CHEAP)
