"""The choice of a model, with its steps and its guidance: the same on every tab that draws."""

import gradio as gr

from koala.models.cards import ModelCard
from koala.ui import limits


def model_choice(
    card: ModelCard, choices: list, *, label: str, slot: str, prefix: str, local: bool, chosen: bool = True
) -> tuple[gr.Dropdown, gr.Slider, gr.Slider]:
    """Model, steps and guidance, at the values of `card`; their ids are PREFIX-model-SLOT and so on.

    Unless `chosen` the list has no value yet.
    """
    with gr.Column(elem_classes="k-model"):
        model = gr.Dropdown(
            choices,
            value=card.name if chosen else None,
            label=label,
            allow_custom_value=True,
            elem_id=f"{prefix}-model-{slot}",
        )
        with gr.Row():
            # Gradio refuses what lies outside; on one's own machine any saved picture fits
            steps, guidance = (
                gr.Slider(
                    low,
                    high,
                    value=getattr(card, field),
                    step=step,
                    label=field.capitalize(),
                    min_width=130,
                    elem_id=f"{prefix}-{field}-{slot}",
                )
                for field, low, high, step in (
                    ("steps", 1, limits.most_steps(local=local), 1),
                    ("guidance", 0, 30, 0.5),
                )
            )
    return model, steps, guidance
