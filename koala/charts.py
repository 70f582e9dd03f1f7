"""Charts as SVG: scales and ticks, axes, lines, bands, markers, a legend, and the file around the panels.

Everything is built of `element`, which escapes the text it is given. What it returns is `Markup` and is not escaped
again, neither by another element nor by Jinja2. Places are in px from the top left corner of a panel.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from html import escape

from koala.palette import COLOURS

Point = tuple[float, float]  # x, y

# For a file that stands alone. In the app, stylesheets colour the same classes in light and dark.
STYLE = f"""
text {{ font: 11px "IBM Plex Sans", system-ui, sans-serif; fill: {COLOURS["quiet"][0]} }}
.chart-paper {{ fill: {COLOURS["paper"][0]} }} .chart-grid {{ stroke: {COLOURS["line"][0]} }}
.chart-title {{ font-weight: 700; font-size: 13px; fill: {COLOURS["ink"][0]} }}
.chart-line {{ fill: none; stroke-width: 2; stroke-linejoin: round }} .chart-band {{ opacity: .14 }}
"""


class Markup(str):
    """Text that is markup already. Jinja2 knows it by `__html__`, as it knows its own."""

    __slots__ = ()

    def __html__(self) -> str:
        return str(self)


def element(name: str, *children: str, **attributes: str | float | None) -> Markup:
    """An element with its children, of which plain strings are escaped.

    `class_` and `text_anchor` become class and text-anchor. Floats get one decimal; None leaves the attribute out.
    """
    opening = name + "".join(
        f' {key.rstrip("_").replace("_", "-")}="{f"{value:.1f}" if isinstance(value, float) else escape(str(value))}"'
        for key, value in attributes.items()
        if value is not None
    )
    if not children:
        return Markup(f"<{opening}/>")
    inside = "".join(child if isinstance(child, Markup) else escape(child) for child in children)
    return Markup(f"<{opening}>{inside}</{name}>")


def join(parts: Iterable[Markup]) -> Markup:
    """Several pieces of markup as one."""
    return Markup("".join(parts))


# --- scales and ticks


def _round_step(span: float, factors: Sequence[float]) -> float:
    """The smallest factor times a power of ten that goes into the span four times at most."""
    unit = 10.0 ** math.floor(math.log10(span / 2))
    return next(f * unit for f in factors if span <= 4 * f * unit * (1 + 1e-9))


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Values -> px: `least` lies at `low` and `most` at `high`, linear or logarithmic between them."""

    least: float
    most: float
    low: float
    high: float
    log: bool = False

    def __call__(self, value: float) -> float:
        least, most, value = (math.log(v) if self.log else v for v in (self.least, self.most, value))
        share = (value - least) / (most - least) if most > least else 0.5
        return self.low + share * (self.high - self.low)

    def ticks(self) -> list[float]:
        """One to five round values between `least` and `most`."""
        if self.log:
            powers = range(math.floor(math.log10(self.least)), math.ceil(math.log10(self.most)) + 1)
            for factors in ((1,), (1, 3), (1, 2, 5)):
                ticks = [f * 10.0**p for p in powers for f in factors if self.least <= f * 10.0**p <= self.most]
                if len(ticks) >= 2:
                    return ticks[:: -(-len(ticks) // 5)]
        span = self.most - self.least
        if not span:
            return [self.least]
        step = _round_step(span, (1, 2, 2.5, 5, 10, 20))
        first, last = math.ceil(self.least / step - 1e-9), math.floor(self.most / step + 1e-9)
        return [k * step for k in range(first, last + 1)]


def ticks_around(low: float, high: float) -> list[float]:
    """Two to six round values, the first at or below `low` and the last at or above `high`."""
    step = _round_step((high - low) or 0.1 * abs(high) or 1.0, (1, 2, 5, 10, 20))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [k * step for k in range(first, max(last, first + 1) + 1)]


# --- what a panel is drawn with


def text(words: str, x: float, y: float, anchor: str | None = None, class_: str | None = None) -> Markup:
    """A label; `anchor` is start, middle or end."""
    return element("text", words, class_=class_, x=x, y=y, text_anchor=anchor)


def _points(points: Iterable[Point]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def line(points: Iterable[Point], *, class_: str = "", **attributes: str) -> Markup:
    """A curve through the points."""
    return element("polyline", class_=f"chart-line {class_}".strip(), **attributes, points=_points(points))


def band(over: Sequence[Point], under: Sequence[Point], **attributes: str) -> Markup:
    """The area between two curves of the same steps."""
    return element("polygon", class_="chart-band", **attributes, points=_points([*over, *reversed(under)]))


def marker(shape: str, x: float, y: float, *, tip: str = "", radius: float = 3, **attributes: str) -> Markup:
    """A point as a circle, a square or a triangle; `tip` is shown under the pointer."""
    title = [element("title", tip)] if tip else []
    if shape == "circle":
        return element("circle", *title, **attributes, cx=float(x), cy=float(y), r=radius)
    if shape == "square":
        return element("rect", *title, **attributes, x=x - 2.6, y=y - 2.6, width=5.2, height=5.2)
    return element("path", *title, **attributes, d=f"M{x:.1f} {y - 3.6:.1f}l3.4 6h-6.8z")


def legend(keys: Iterable[tuple[Markup, str, float]], x: float, y: float, gap: float) -> Markup:
    """Keys from left to right as (sign, name, width): the sign is drawn on the baseline, the name `gap` px from it."""
    parts = []
    for sign, name, width in keys:
        parts.append(element("g", sign, text(name, gap, 0), transform=f"translate({x:.0f} {y:.0f})"))
        x += width
    return join(parts)


@dataclass(frozen=True, kw_only=True)
class Frame:
    """A panel's size and the margins of its plot. The labels of the x axis lie `foot` px below the plot."""

    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int
    foot: int = 17

    def across(self, least: float, most: float, *, log: bool = False) -> Scale:
        """The x axis."""
        return Scale(least=least, most=most, low=self.left, high=self.width - self.right, log=log)

    def up(self, least: float, most: float, *, log: bool = False) -> Scale:
        """The y axis, upwards."""
        return Scale(least=least, most=most, low=self.height - self.bottom, high=self.top, log=log)

    def title(self, words: str) -> Markup:
        """The panel's title, above the plot."""
        return text(words, self.left, 18, class_="chart-title")

    def rule(self, y: float, class_: str = "chart-grid") -> Markup:
        """A horizontal line across the plot."""
        return element("path", class_=class_, d=f"M{self.left} {y:.1f}H{self.width - self.right}")

    def grid(self, y: Scale, ticks: Iterable[float], show: Callable[[float], str]) -> Markup:
        """A rule and a label for every tick of the y axis."""
        return join(
            part for t in ticks for part in (self.rule(y(t)), text(show(t), self.left - 6, y(t) + 4, anchor="end"))
        )

    def below(self, words: str, x: float, anchor: str = "middle") -> Markup:
        """A label of the x axis."""
        return text(words, float(x), self.height - self.bottom + self.foot, anchor=anchor)

    def svg(self, label: str, *parts: Markup) -> Markup:
        """The panel alone, for a page; `label` is read to those who do not see it."""
        return element("svg", *parts, viewBox=f"0 0 {self.width} {self.height}", role="img", aria_label=label)

    def file(
        self, title: str, panels: Sequence[Markup], *foot: Markup, label: str, style: str, width: int, height: int
    ) -> str:
        """Panels side by side as an SVG file of `width` x `height`; `foot` is what is drawn below them."""
        shifted = (
            element("g", panel, transform=f"translate({8 + self.width * k} 34)") for k, panel in enumerate(panels)
        )
        figure = element(
            "svg",
            element("style", Markup(STYLE + style)),
            element("rect", class_="chart-paper", width=width, height=height),
            text(title, 8 + self.left, 22, class_="chart-title"),
            *shifted,
            *foot,
            xmlns="http://www.w3.org/2000/svg",
            viewBox=f"0 0 {width} {height}",
            width=width,
            height=height,
            role="img",
            aria_label=label,
        )
        return f"{figure}\n"
