"""Curves of one run, or of two beside each other, as small SVG figures: one per term of the loss, and the score."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape

from koala.ui.distill.metrics import PACE, TERMS, Curve, Metrics, thinned

WIDTH, HEIGHT = 280, 140  # of a figure
LEFT, RIGHT, TOP, BOTTOM = 44, 8, 8, 24  # its margins
LOG = 6  # times that the largest value is the smallest, from which on an axis is logarithmic
MEANINGS = {
    "loss": ("Loss", "all terms, with their weights"),
    "task": ("Task", "distance to the true noise"),
    "output": ("Output", "distance to the teacher's prediction"),
    "SA": ("SA", "self-attention, against the teacher's"),
    "CA": ("CA", "cross-attention, against the teacher's"),
    "FFN": ("FFN", "feed-forward layers, against the teacher's"),
    "Res": ("Res", "residual blocks, against the teacher's"),
    "LF": ("LF", "last features of whole stages"),
    "learning_rate": ("Learning rate", "at this step"),
    "grad_norm": ("Gradient norm", "before clipping"),
    "pictures_per_second": ("Pictures per second", ""),
}
SUITES = {
    "one_object": ("Shapes score, one object", "prompts of which every claim holds"),
    "two_objects": ("Shapes score, two objects", "prompts of which every claim holds"),
}


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve as it is drawn: the shown run or the one beside it, a training line or the dots of a validation."""

    name: str
    curve: Curve
    beside: bool = False
    dots: bool = False

    @property
    def css(self) -> str:
        """Its classes: kd-a is the shown run, kd-b the one beside it, kd-dots a validation."""
        return f"kd-{'b' if self.beside else 'a'}{' kd-dots' if self.dots else ''}"


@dataclass(frozen=True, kw_only=True)
class _Axis:
    """Values -> pixels from `low` to `high`, evenly or by their logarithm."""

    least: float
    most: float
    low: float
    high: float
    log: bool = False

    def __call__(self, value: float) -> float:
        ends = [math.log(v) if self.log else v for v in (self.least, self.most, value)]
        share = (ends[2] - ends[0]) / (ends[1] - ends[0]) if ends[1] > ends[0] else 0.5
        return self.low + share * (self.high - self.low)

    def ticks(self) -> list[float]:
        """Two to five round values on the axis."""
        if self.log:
            powers = range(math.floor(math.log10(self.least)), math.ceil(math.log10(self.most)) + 1)
            for factors in ((1,), (1, 3), (1, 2, 5)):
                found = [f * 10.0**p for p in powers for f in factors if self.least <= f * 10.0**p <= self.most]
                if len(found) >= 2:
                    return found[:: -(-len(found) // 5)]
        span = self.most - self.least
        if not span:
            return [self.least]
        power = 10.0 ** math.floor(math.log10(span / 2))
        step = next(f * power for f in (1, 2, 2.5, 5, 10, 20) if span / (f * power) <= 4)
        first = math.ceil(self.least / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.most / step + 1e-9) + 1)]


def number(value: float) -> str:
    """Three figures: 0.0412, 12.3, 1.2e-05, 1,200."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _steps(step: float) -> str:
    if step >= 1_000_000:
        return f"{step / 1_000_000:g}M"
    return f"{step / 1000:g}k" if step >= 10_000 else f"{step:,.0f}"


def _drawn(line: Line, x: _Axis, y: _Axis) -> str:
    places = [(x(step), y(value)) for step, value in line.curve]
    if line.dots or len(places) == 1:
        dots = "".join(f'<circle cx="{a:.1f}" cy="{b:.1f}" r="{3 if line.dots else 2}"/>' for a, b in places)
        return f'<g class="{line.css}">{dots}</g>'
    path = " ".join(f"{a:.1f},{b:.1f}" for a, b in places)
    return f'<polyline class="kd-line {line.css}" points="{path}"/>'


def _spoken(title: str, lines: Sequence[Line], say: Callable[[float], str]) -> str:
    """The curves for those who do not see them."""
    told = []
    for line in lines:
        (first, begin), (last, end) = line.curve[0], line.curve[-1]
        told.append(f"{line.name}: {say(begin)} at step {first}, {say(end)} at step {last}")
    return f"{title}. {'; '.join(told)}"


def figure(
    title: str,
    what: str,
    lines: Sequence[Line],
    *,
    percent: bool = False,
    even: bool = False,
    mark: tuple[str, float] | None = None,
) -> str:
    """One figure with its caption; `even` never has a logarithmic axis, `mark` is a level to compare with."""
    lines = [line for line in lines if line.curve]
    values = [v for line in lines for _, v in line.curve]
    steps = [s for line in lines for s, _ in line.curve]
    say = (lambda v: f"{100 * v:.0f} %") if percent else number
    least, most = (0.0, 1.0) if percent else (min(values), max(values))
    log = not (percent or even) and least > 0 and most / least >= LOG
    if not log and not percent and most > least:
        room = (most - least) / 12
        least, most = (0.0 if 0 <= least < room else least - room), most + room
    x = _Axis(least=min(min(steps), 0), most=max(max(steps), 1), low=LEFT, high=WIDTH - RIGHT)
    y = _Axis(least=least, most=most, low=HEIGHT - BOTTOM, high=TOP, log=log)
    grid = "".join(
        f'<line class="kd-rule" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(t):.1f}" y2="{y(t):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y(t) + 4:.1f}" text-anchor="end">{say(t)}</text>'
        for t in y.ticks()
    )
    across = x.ticks()
    foot = "".join(
        f'<text x="{x(t):.1f}" y="{HEIGHT - 6}" text-anchor="{"end" if x(t) > WIDTH - 30 else "middle"}">'
        f"{_steps(t)}</text>"
        for t in across
    )
    level = ""
    if mark:
        at = y(mark[1])
        level = (
            f'<line class="kd-mark" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
            f'<text x="{WIDTH - RIGHT}" y="{at - 5 if at > TOP + 16 else at + 14:.1f}" text-anchor="end">'
            f"{escape(mark[0])} {say(mark[1])}</text>"
        )
    now = {line.beside: line for line in lines if not line.dots} | {line.beside: line for line in lines if line.dots}
    figures = "".join(f'<b class="kd-{"b" if k else "a"}">{say(now[k].curve[-1][1])}</b>' for k in sorted(now))
    drawn = "".join(_drawn(line, x, y) for line in sorted(lines, key=lambda line: not line.beside))
    return (
        f'<figure class="kd-curve"><figcaption><strong>{escape(title)}</strong><span class="kd-now">{figures}</span>'
        f"<small>{escape(what)}</small></figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(_spoken(title, lines, say))}">'
        f"{grid}{foot}{level}{drawn}</svg></figure>"
    )


def _of_two(name: str, runs: Sequence[tuple[str, Metrics]]) -> list[Line]:
    """The lines and dots of one term in the shown run, and in the one beside it."""
    found = []
    for beside, (title, metrics) in enumerate(runs):
        found.append(Line(name=title, curve=thinned(metrics.curve("train", name)), beside=bool(beside)))
        dots = metrics.curve("validation", name)
        found.append(Line(name=f"{title}, validation", curve=dots, beside=bool(beside), dots=True))
    return [line for line in found if line.curve]


def _figures(names: Sequence[str], runs: Sequence[tuple[str, Metrics]]) -> str:
    found = [(name, _of_two(name, runs)) for name in names]
    return "".join(figure(*MEANINGS[name], lines, even=name == "learning_rate") for name, lines in found if lines)


def legend(runs: Sequence[tuple[str, Metrics]]) -> str:
    """What lines and dots mean; and, of two runs, whose they are."""
    keys = [f'<span><i class="kd-key kd-a"></i>{escape(runs[0][0])}</span>'] if len(runs) > 1 else []
    keys += [f'<span><i class="kd-key kd-b"></i>{escape(title)}</span>' for title, _ in runs[1:]]
    if any(metrics.validation for _, metrics in runs):
        keys.append("<span>lines: training</span><span>dots: validation, on pictures never trained on</span>")
    return f'<p class="kd-keys">{"".join(keys)}</p>' if keys else ""


def _scores(runs: Sequence[tuple[str, Metrics]], teacher: Mapping[str, float]) -> str:
    found = []
    for suite, (title, what) in SUITES.items():
        curves = [(name, metrics.curve("score", suite)) for name, metrics in runs]
        lines = [Line(name=n, curve=c, beside=bool(k)) for k, (n, c) in enumerate(curves) if c]
        if lines:
            mark = ("teacher", teacher[suite]) if suite in teacher else None
            found.append(figure(title, what, lines, percent=True, mark=mark))
    return "".join(found)


def terms(runs: Sequence[tuple[str, Metrics]], teacher: Mapping[str, float]) -> str:
    """Scores first, where there are any, then every term of the loss; `runs` are one or two, by their names.

    `teacher` has the teacher's own scores by suite.
    """
    figures = _scores(runs, teacher) + _figures(TERMS, runs)
    if not figures:
        return '<p class="kd-hint">The curves begin with the first logged step.</p>'
    return f'{legend(runs)}<div class="kd-curves">{figures}</div>'


def pace(runs: Sequence[tuple[str, Metrics]]) -> str:
    """Learning rate, gradients and speed."""
    figures = _figures(PACE, runs)
    return f'<div class="kd-curves">{figures}</div>' if figures else '<p class="kd-hint">Nothing logged yet.</p>'


def by_noise(metrics: Metrics) -> str:
    """The last validation, term by term and by how noisy the picture was."""
    last = metrics.last("validation")
    if not last or not last.get("timesteps"):
        return '<p class="kd-hint">Comes with the first validation.</p>'
    names = [n for n in TERMS if any(n in bucket for bucket in last["timesteps"].values())]
    heads = "".join(f'<th scope="col">{MEANINGS[n][0]}</th>' for n in names)
    rows = "".join(
        f'<tr><th scope="row">{escape(title)}</th>'
        + "".join(f"<td>{number(bucket[n]) if n in bucket else '–'}</td>" for n in names)
        + "</tr>"
        for title, bucket in last["timesteps"].items()
    )
    return (
        '<div class="kd-scroll" role="region" aria-label="Validation by noise" tabindex="0"><table>'
        f'<thead><tr><th scope="col">timesteps</th>{heads}</tr></thead><tbody>{rows}</tbody></table></div>'
        f'<p class="k-note">At step {last["step"]}. Low timesteps carry little noise, high ones nearly nothing else: '
        "there composition is decided.</p>"
    )
