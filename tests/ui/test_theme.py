"""WCAG AA: every text colour of the theme and of our own stylesheet on every ground that it stands on."""

import itertools
import re

import pytest

from koala.ui.theme import COLOURS, UI, Eucalyptus

AA_TEXT, AA_CONTROL = 4.5, 3.0
MODES = ("light", "dark")


def luminance(colour: str) -> float:
    channels = (int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5))
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_of_known_pairs():
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


def token(theme: Eucalyptus, name: str, mode: str) -> str:
    """A theme token as #rrggbb; a token without a dark value has the light one."""
    result = theme._get_computed_value(f"{name}_dark" if mode == "dark" else name)
    result = {"white": "#ffffff", "black": "#000000"}.get(result, result)
    assert re.fullmatch(r"#[0-9a-fA-F]{6}", result), f"{name} ({mode}) is {result!r}"
    return result


TEXTS = (  # what is read, and what it is read on
    ("body_text_color", "body_background_fill"),
    ("body_text_color", "background_fill_primary"),
    ("body_text_color", "background_fill_secondary"),
    ("body_text_color", "input_background_fill"),
    ("body_text_color_subdued", "body_background_fill"),
    ("body_text_color_subdued", "background_fill_primary"),
    ("body_text_color_subdued", "background_fill_secondary"),
    ("block_label_text_color", "body_background_fill"),
    ("block_title_text_color", "body_background_fill"),
    ("block_title_text_color", "background_fill_primary"),
    ("block_info_text_color", "body_background_fill"),
    ("block_info_text_color", "background_fill_primary"),
    ("input_placeholder_color", "input_background_fill"),
    ("accordion_text_color", "body_background_fill"),
    ("table_text_color", "body_background_fill"),
    ("checkbox_label_text_color", "body_background_fill"),
    ("link_text_color", "body_background_fill"),
    ("link_text_color_hover", "body_background_fill"),
    ("button_primary_text_color", "button_primary_background_fill"),
    ("button_primary_text_color", "button_primary_background_fill_hover"),
    ("button_secondary_text_color", "button_secondary_background_fill"),
    ("button_secondary_text_color", "button_secondary_background_fill_hover"),
    ("button_cancel_text_color", "button_cancel_background_fill"),
    ("button_cancel_text_color", "button_cancel_background_fill_hover"),
    ("error_text_color", "error_background_fill"),
)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("text", "ground"), TEXTS)
def test_theme_text_is_readable(text, ground, mode):
    theme = Eucalyptus()
    result = contrast(token(theme, text, mode), token(theme, ground, mode))
    print(f"{mode} {text} on {ground}: {result:.2f}")
    assert result >= AA_TEXT


@pytest.mark.parametrize("mode", MODES)
def test_own_text_is_readable(mode):
    colours = {name: pair[MODES.index(mode)] for name, pair in COLOURS.items()}
    pairs = itertools.product(("ink", "quiet", "accent", "good", "bad"), ("paper", "card", "sunken", "accent-soft"))
    result = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in pairs}
    worst = min(result, key=result.get)
    print(f"{mode}: worst own pair {worst} {result[worst]:.2f}")
    assert result[worst] >= AA_TEXT


@pytest.mark.parametrize("mode", MODES)
def test_controls_and_bars_stand_out(mode):
    colours = {name: pair[MODES.index(mode)] for name, pair in COLOURS.items()}
    for name in ("control", "accent", "bar-unet", "bar-vae"):
        for ground in ("paper", "card"):
            assert contrast(colours[name], colours[ground]) >= AA_CONTROL, (name, ground)


def test_the_stylesheet_knows_no_other_colours():
    """Every colour goes through COLOURS, where it is measured; the slider's line is white with a dark edge."""
    sheets = "".join(sheet.read_text() for sheet in UI.rglob("*.css"))
    sheet = re.sub(r"/\*.*?\*/", "", sheets, flags=re.S)
    named = set(re.findall(r"var\(--k-([a-z-]+)\)", sheet))
    assert named <= set(COLOURS), named - set(COLOURS)
    assert set(re.findall(r"#[0-9a-f]{3,8}\b(?=[ ;)])", sheet)) <= {"#fff", "#0008"}


def test_the_fonts_are_served_by_the_app():
    theme = Eucalyptus()
    assert theme._stylesheets == []
    assert "static/fonts/IBMPlexSans" in "".join(theme._font_css)
    assert not re.search(r"url\([\"']?(https?:)?//|@import", theme._get_theme_css())
