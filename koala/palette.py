"""The colours of every page: eucalyptus on warm paper, green-grey in the dark."""

# (light, dark); stylesheets read them as var(--k-NAME). Every text meets WCAG AA (tests/ui/test_theme.py).
COLOURS = {
    "paper": ("#faf8f4", "#121917"),
    "card": ("#fffefb", "#19221f"),
    "sunken": ("#f2efe8", "#0e1513"),
    "line": ("#e3ded4", "#2c3935"),
    "control": ("#8f887b", "#70857d"),  # borders of what can be operated: 3:1
    "ink": ("#22211d", "#e8eeeb"),
    "quiet": ("#5e584f", "#a8b8b1"),
    "accent": ("#2b604e", "#93c9b3"),
    "accent-soft": ("#e2efe8", "#22382f"),
    "action": ("#326855", "#8cc4ad"),  # the button that one came for
    "action-hover": ("#295446", "#a6d5c2"),
    "action-text": ("#ffffff", "#0e1f1a"),
    "good": ("#256246", "#8fd3ad"),
    "bad": ("#a03325", "#f3a595"),
    "bar-text": ("#b98a2f", "#d9b263"),
    "bar-unet": ("#3a7a64", "#6fb39a"),
    "bar-vae": ("#7b6a8f", "#a894c0"),
}


def variables() -> tuple[str, str]:
    """The declarations of all colours, in light and in dark, to be put into a rule."""
    light, dark = ("".join(f"--k-{name}:{pair[k]};" for name, pair in COLOURS.items()) for k in range(2))
    return light, dark
