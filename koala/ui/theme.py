"""The look: eucalyptus on warm paper, green-grey in the dark; every text meets WCAG AA (tests/ui/test_theme.py)."""

from pathlib import Path

import gradio as gr

from koala.palette import COLOURS, variables

UI = Path(__file__).parent  # each tab has its scripts and styles next to its code, shared ones are in assets/
ASSETS = UI / "assets"
VIEWER = Path(__file__).parents[1] / "attention" / "assets"  # shared with the page that needs no server

EUCALYPTUS = gr.themes.Color(
    name="eucalyptus",
    c50="#eff6f2",
    c100="#dcebe3",
    c200="#bad7c9",
    c300="#93c0ad",
    c400="#66a08b",
    c500="#46816c",
    c600="#326855",
    c700="#295446",
    c800="#224439",
    c900="#1d3830",
    c950="#0e1f1a",
)
STONE = gr.themes.Color(
    name="stone",
    c50="#fbfaf7",
    c100="#f4f2ed",
    c200="#e7e3db",
    c300="#d5cfc4",
    c400="#aaa397",
    c500="#7d766b",
    c600="#5e584f",
    c700="#48433c",
    c800="#302d28",
    c900="#201e1a",
    c950="#141310",
)

# Gradio's colour tokens -> names in COLOURS.
TOKENS = {
    "body_background_fill": "paper",
    "body_text_color": "ink",
    "body_text_color_subdued": "quiet",
    "background_fill_primary": "card",
    "background_fill_secondary": "sunken",
    "border_color_primary": "line",
    "border_color_accent": "accent",
    "color_accent_soft": "accent-soft",
    "link_text_color": "accent",
    "link_text_color_hover": "accent",
    "link_text_color_active": "accent",
    "link_text_color_visited": "accent",
    "code_background_fill": "sunken",
    "block_border_color": "line",
    "block_info_text_color": "quiet",
    "block_label_text_color": "quiet",
    "block_title_text_color": "ink",
    "panel_background_fill": "card",
    "accordion_text_color": "ink",
    "table_text_color": "ink",
    "input_background_fill": "card",
    "input_background_fill_focus": "card",
    "input_background_fill_hover": "card",
    "input_border_color": "control",
    "input_border_color_focus": "accent",
    "input_border_color_hover": "accent",
    "input_placeholder_color": "quiet",
    "slider_color": "accent",
    "loader_color": "accent",
    "checkbox_background_color": "card",
    "checkbox_background_color_selected": "accent",
    "checkbox_border_color": "control",
    "checkbox_border_color_selected": "accent",
    "checkbox_border_color_focus": "accent",
    "checkbox_label_background_fill": "card",
    "checkbox_label_text_color": "ink",
    "button_secondary_background_fill": "card",
    "button_secondary_background_fill_hover": "accent-soft",
    "button_secondary_border_color": "control",
    "button_secondary_border_color_hover": "accent",
    "button_secondary_text_color": "ink",
    "button_secondary_text_color_hover": "ink",
    "button_cancel_background_fill": "card",
    "button_cancel_background_fill_hover": "sunken",
    "button_cancel_border_color": "bad",
    "button_cancel_border_color_hover": "bad",
    "button_cancel_text_color": "bad",
    "button_cancel_text_color_hover": "bad",
    "button_primary_background_fill": "action",
    "button_primary_background_fill_hover": "action-hover",
    "button_primary_border_color": "action",
    "button_primary_border_color_hover": "action-hover",
    "button_primary_text_color": "action-text",
    "error_background_fill": "card",
    "error_text_color": "bad",
    "error_border_color": "bad",
    "error_icon_color": "bad",
}
# Gradio's other tokens: sizes, weights, shadows, and colours outside our pairs.
SETTINGS = {
    "checkbox_background_color_selected_dark": "*primary_500",  # its tick is white
    "body_text_size": "*text_md",
    "block_label_text_weight": "600",
    "block_title_text_weight": "600",
    "block_title_text_size": "*text_sm",
    "block_info_text_size": "*text_sm",
    "block_border_width": "0px",
    "block_border_width_dark": "0px",
    "input_border_width": "1px",
    "input_border_width_dark": "1px",
    "block_shadow": "none",
    "block_shadow_dark": "none",
    "block_background_fill": "transparent",
    "block_background_fill_dark": "transparent",
    "block_label_background_fill": "transparent",
    "block_label_background_fill_dark": "transparent",
    "block_radius": "*radius_md",
    "input_radius": "*radius_md",
    "block_padding": "0px",
    "input_shadow": "none",
    "input_shadow_focus": "inset 0 0 0 1px *primary_600",
    "input_shadow_focus_dark": "inset 0 0 0 1px *primary_300",
    "button_large_text_weight": "600",
    "button_border_width": "1px",
    "button_primary_shadow": "none",
    "button_secondary_shadow": "none",
    "button_transition": "background-color 0.15s, border-color 0.15s",
    "checkbox_shadow": "none",
}


def _variables() -> str:
    light, dark = (f"{block}--color-accent:var(--k-accent);" for block in variables())
    return f":root{{{light}}}:root.dark,:root .dark{{{dark}}}"


class Eucalyptus(gr.themes.Base):
    """Gradio's tokens in our colours; fonts are those that Gradio serves itself."""

    def __init__(self):
        super().__init__(
            primary_hue=EUCALYPTUS,
            secondary_hue=EUCALYPTUS,
            neutral_hue=STONE,
            radius_size=gr.themes.sizes.radius_md,
            text_size=gr.themes.sizes.text_md,
            # 400 and 700 alone: the semi-bold files that Gradio bundles hold a few letters only
            font=(gr.themes.GoogleFont("IBM Plex Sans", weights=(400, 700)), "system-ui", "sans-serif"),
            font_mono=(gr.themes.GoogleFont("IBM Plex Mono", weights=(400, 700)), "ui-monospace", "monospace"),
        )
        self.name = "eucalyptus"
        coloured = {}
        for token, name in TOKENS.items():
            coloured[token], coloured[f"{token}_dark"] = COLOURS[name]
        self.set(**coloured | SETTINGS)
        self.custom_css = _variables() + "".join(
            sheet.read_text()
            for sheet in (*sorted(UI.rglob("*.css"), key=lambda sheet: sheet.name), VIEWER / "viewer.css")
        )
