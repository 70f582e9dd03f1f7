"""What a visitor fills in on the Compare tab: the prompt, two to four models with their own settings, and the rest."""

from collections.abc import Mapping

import gradio as gr

from koala.errors import UserError
from koala.models.cards import CARDS
from koala.presets import PRESETS
from koala.request import MAX_LORA_STRENGTH, SCHEDULERS
from koala.ui import limits, settings, widgets
from koala.ui.model_choice import model_choice
from koala.ui.session import Session
from koala.ui.settings import FIELDS, MORE, OWN_SCHEDULER, SLOTS
from koala.ui.theme import ASSETS
from koala.ui.token_counter import TokenCounter

ORDINALS = ("First", "Second", "Third", "Fourth")


class Form:
    """The fields by their names in `settings.FIELDS`, and the components around them."""

    def __init__(self, session: Session):
        self.session = session
        self.fields: dict[str, gr.components.Component] = {}
        self.columns: list[gr.Column] = []  # of the models after the second, hidden where none is chosen
        self.removals: list[gr.Button] = []  # a button in each of them
        with gr.Column(elem_classes="k-controls k-ask"):
            self._ask()
        with gr.Column(elem_classes="k-controls k-settings"):
            self._models()
            self._settings()

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

    def _models(self) -> None:
        choices = self.session.catalogue.choices(exports=True)
        cards = [self.session.catalogue.card(name) for name in self.session.models]
        for slot, ordinal in zip(SLOTS, ORDINALS, strict=True):
            more = slot in MORE
            with gr.Column(visible=not more, elem_classes="k-controls") as column:
                names = [f"{part}_{slot}" for part in settings.OWN]
                parts = model_choice(
                    cards[0] if more else cards[SLOTS.index(slot)],
                    choices,
                    label=f"{ordinal} model",
                    slot=slot,
                    prefix="k",
                    local=self.session.local,
                    chosen=not more,
                )
                self.fields |= zip(names, parts, strict=True)
                if more:
                    self.removals.append(
                        gr.Button(f"Remove the {ordinal.lower()} model", size="sm", elem_id=f"k-remove-{slot}")
                    )
                    self.columns.append(column)
        self.add = gr.Button("Add a model", size="sm", elem_id="k-add")

    def _settings(self) -> None:
        own = self.fields
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

    @property
    def models(self) -> list[gr.Dropdown]:
        """The lists of models, one per slot; that of a hidden slot has no value."""
        return [self.fields[f"model_{slot}"] for slot in SLOTS]

    @property
    def guidances(self) -> list[gr.Slider]:
        """The sliders of guidance, one per slot."""
        return [self.fields[f"guidance_{slot}"] for slot in SLOTS]

    @property
    def filled(self) -> list:
        """The components that `fill` gives values for, in its order."""
        return [*(self.fields[name] for name in FIELDS), *self.columns, self.add]

    def fill(self, values: Mapping[str, object]) -> list:
        """Updates of `filled`: these values of fields, with a column for each model among them; the rest stays."""
        fields = [values.get(name, gr.skip()) for name in FIELDS]
        if not any(f"model_{slot}" in values for slot in MORE):
            return fields + [gr.skip()] * (len(self.columns) + 1)
        return fields + self.shown([values.get(f"model_{slot}") for slot in MORE])

    def shown(self, more: list) -> list:
        """Updates of the columns and the Add button for the names of the models after the second."""
        return [*(gr.Column(visible=bool(name)) for name in more), gr.Button(visible=not all(more))]

    def suggested(self, chosen: list) -> str:
        """A model to compare with those chosen: the first student of the list, or whatever is left."""
        others = [name for _, name in self.session.catalogue.choices(exports=True) if name not in chosen]
        if not others:
            raise UserError("every model of the list is chosen already")
        return next((name for name in others if name in CARDS and CARDS[name].teacher), others[0])
