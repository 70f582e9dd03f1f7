"""The curves of a run, or of two runs over each other, as small SVG figures: one per term of the loss and per score."""

import math
import os
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

from koala import charts
from koala.distill.config import FEATURES
from koala.distill.run.folder import RunFolder
from koala.distill.run.records import read_entry
from koala.errors import UserError
from koala.ui.html import macros

MOST_POINTS = 240  # of a curve
TERMS = ("loss", "task", "output", *FEATURES, "consistency", "guidance")
PACE = ("learning_rate", "grad_norm", "pictures_per_second")

Curve = list[tuple[int, float]]  # (step, value), rising steps


@dataclass(kw_only=True)
class Metrics:
    """The logged entries by kind; the steps of each kind rise."""

    train: list[dict] = field(default_factory=list)
    validation: list[dict] = field(default_factory=list)
    score: list[dict] = field(default_factory=list)
    damaged: int = 0  # lines that cannot be read and are left out

    def curve(self, kind: str, name: str) -> Curve:
        """`name` in the entries of a kind (train, validation, score); entries without a finite number are left out."""
        values = ((e["step"], e.get(name)) for e in getattr(self, kind))
        return [(step, v) for step, v in values if isinstance(v, int | float) and math.isfinite(v)]

    def last(self, kind: str) -> dict | None:
        """The newest entry of a kind (train, validation, score); None where there is none yet."""
        entries = getattr(self, kind)
        return entries[-1] if entries else None


class Follower:
    """Reads one run's metrics from where it stopped the last time. Thread-safe: several pages may show one run."""

    def __init__(self, run: RunFolder) -> None:
        self._file = run.metrics_file
        self._lock = threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._place, self._inode = 0, None
        self.metrics = Metrics()

    def read(self) -> Metrics:
        """All metrics up to now. A file that was replaced, as by a resumed run, is read anew.

        UserError where it cannot be read.
        """
        with self._lock:
            try:
                with self._file.open("rb") as file:
                    self._read(file)
            except FileNotFoundError:
                self._begin()
            except OSError as error:
                raise UserError(f"{self._file} cannot be read ({error.strerror}); remove it") from error
            return self.metrics

    def _read(self, file: BinaryIO) -> None:
        status = os.fstat(file.fileno())
        if status.st_ino != self._inode or status.st_size < self._place:
            self._begin()
            self._inode = status.st_ino
        file.seek(self._place)
        whole, end, _ = file.read().rpartition(b"\n")  # the last line may still be written
        self._place += len(whole) + len(end)
        for line in whole.split(b"\n"):
            entry = read_entry(line)
            if entry is not None:
                getattr(self.metrics, entry["kind"]).append(entry)
            elif line.strip():
                self.metrics.damaged += 1


def thinned(curve: Curve, most: int = MOST_POINTS) -> Curve:
    """The curve in at most `most` points, each the mean of its neighbours; the last point is kept."""
    if len(curve) <= most:
        return curve
    size = -(-len(curve) // (most - 1))
    parts: Sequence[Curve] = [curve[i : i + size] for i in range(0, len(curve) - 1, size)]
    means = [(part[len(part) // 2][0], sum(v for _, v in part) / len(part)) for part in parts]
    return [*means, curve[-1]]


FRAME = charts.Frame(width=280, height=140, left=44, right=8, top=8, bottom=24, foot=18)
LOG = 6  # ratio of the largest value to the smallest from which the axis is logarithmic
MEANINGS = {
    "loss": ("Loss", "weighted sum of all terms"),
    "task": ("Task", "distance to the true noise"),
    "output": ("Output", "distance to the teacher's prediction"),
    "SA": ("SA", "self-attention, against the teacher's"),
    "CA": ("CA", "cross-attention, against the teacher's"),
    "FFN": ("FFN", "feed-forward layers, against the teacher's"),
    "Res": ("Res", "residual blocks, against the teacher's"),
    "LF": ("LF", "last features of whole stages"),
    "consistency": ("Consistency", "at the phase's end, against the next step's own"),
    "guidance": ("Guidance", "against the guided teacher's prediction"),
    "learning_rate": ("Learning rate", "at this step"),
    "grad_norm": ("Gradient norm", "before clipping"),
    "pictures_per_second": ("Pictures per second", ""),
}
SUITES = {
    "one_object": ("Shapes score, one object", "prompts whose every claim holds"),
    "two_objects": ("Shapes score, two objects", "prompts whose every claim holds"),
}

Figure = tuple[str, str, Sequence[tuple[str, str]], charts.Markup]  # title, meaning, newest value by run, chart


@dataclass(frozen=True, kw_only=True)
class Line:
    """A curve of the shown run or of the one compared with it: a training line, or the dots of a validation."""

    name: str
    curve: Curve
    compared: bool = False
    dots: bool = False

    @property
    def run(self) -> str:
        """The CSS class of its run: kd-a is the shown run, kd-b the compared one."""
        return "kd-b" if self.compared else "kd-a"


def number(value: float) -> str:
    """Three significant digits: 0.0412, 12.3, 1.2e-05, 1,200."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _steps(step: float) -> str:
    if step >= 1_000_000:
        return f"{step / 1_000_000:g}M"
    return f"{step / 1000:g}k" if step >= 10_000 else f"{step:,.0f}"


HTML = macros("distill/curves.html", meanings=MEANINGS, number=number)


def _drawn(line: Line, x: charts.Scale, y: charts.Scale) -> charts.Markup:
    points = [(x(step), y(value)) for step, value in line.curve]
    if line.dots or len(points) == 1:
        dots = (charts.marker("circle", *point, radius=3 if line.dots else 2) for point in points)
        return charts.element("g", *dots, class_=f"{line.run}{' kd-dots' if line.dots else ''}")
    return charts.line(points, class_=line.run)


def _spoken(title: str, lines: Sequence[Line], show: Callable[[float], str]) -> str:
    """The curves in words, for screen readers."""
    ends = []
    for line in lines:
        (first, begin), (last, end) = line.curve[0], line.curve[-1]
        ends.append(f"{line.name}: {show(begin)} at step {first}, {show(end)} at step {last}")
    return f"{title}. {'; '.join(ends)}"


def figure(
    title: str,
    meaning: str,
    lines: Sequence[Line],
    *,
    percent: bool = False,
    even: bool = False,
    mark: tuple[str, float] | None = None,
) -> Figure:
    """One chart with its caption. `even` is never logarithmic; `mark` is the name and value of a reference."""
    lines = [line for line in lines if line.curve]
    values = [v for line in lines for _, v in line.curve]
    steps = [s for line in lines for s, _ in line.curve]
    show = (lambda v: f"{100 * v:.0f} %") if percent else number
    least, most = (0.0, 1.0) if percent else (min(values), max(values))
    log = not (percent or even) and least > 0 and most / least >= LOG
    if not log and not percent and most > least:
        room = (most - least) / 12
        least, most = (0.0 if 0 <= least < room else least - room), most + room
    x, y = FRAME.across(min(*steps, 0), max(*steps, 1)), FRAME.up(least, most, log=log)
    parts = [FRAME.grid(y, y.ticks(), show)]
    parts += [FRAME.below(_steps(t), x(t), anchor="end" if x(t) > FRAME.width - 30 else "middle") for t in x.ticks()]
    if mark:
        at = y(mark[1])
        above = at - 5 if at > FRAME.top + 16 else at + 14
        label = charts.text(f"{mark[0]} {show(mark[1])}", FRAME.width - FRAME.right, above, anchor="end")
        parts += [FRAME.rule(at, class_="kd-mark"), label]
    parts += [_drawn(line, x, y) for line in sorted(lines, key=lambda line: not line.compared)]
    newest = {line.run: line for line in sorted(lines, key=lambda line: line.dots)}
    shown = [(run, show(newest[run].curve[-1][1])) for run in sorted(newest)]
    return title, meaning, shown, FRAME.svg(_spoken(title, lines, show), *parts)


def _term_lines(name: str, runs: Sequence[tuple[str, Metrics]]) -> list[Line]:
    """The training lines and validation dots of one term, of the shown run and of the compared one."""
    lines = []
    for k, (title, metrics) in enumerate(runs):
        lines.append(Line(name=title, curve=thinned(metrics.curve("train", name)), compared=bool(k)))
        dots = metrics.curve("validation", name)
        lines.append(Line(name=f"{title}, validation", curve=dots, compared=bool(k), dots=True))
    return [line for line in lines if line.curve]


def _figures(names: Sequence[str], runs: Sequence[tuple[str, Metrics]]) -> Iterable[Figure]:
    for name in names:
        if lines := _term_lines(name, runs):
            yield figure(*MEANINGS[name], lines, even=name == "learning_rate")


def _scores(runs: Sequence[tuple[str, Metrics]], teacher: Mapping[str, float]) -> Iterable[Figure]:
    for suite, caption in SUITES.items():
        curves = [(name, metrics.curve("score", suite)) for name, metrics in runs]
        lines = [Line(name=name, curve=curve, compared=bool(k)) for k, (name, curve) in enumerate(curves) if curve]
        if lines:
            mark = ("teacher", teacher[suite]) if suite in teacher else None
            yield figure(*caption, lines, percent=True, mark=mark)


def terms(runs: Sequence[tuple[str, Metrics]], teacher: Mapping[str, float]) -> str:
    """The scores, where there are any, then every term of the loss; `runs` are one or two, as (name, metrics).

    `teacher` has the teacher's own scores by suite.
    """
    figures = [*_scores(runs, teacher), *_figures(TERMS, runs)]
    if not figures:
        return HTML.hint("The curves begin with the first logged step.")
    validated = any(metrics.validation for _, metrics in runs)
    return HTML.legend([name for name, _ in runs], validated) + HTML.grid(figures)


def pace(runs: Sequence[tuple[str, Metrics]]) -> str:
    """Learning rate, gradient norm and speed."""
    figures = list(_figures(PACE, runs))
    return HTML.grid(figures) if figures else HTML.hint("Nothing logged yet.")


def by_noise(metrics: Metrics) -> str:
    """The last validation as a table: every term of the loss by the noise of the picture."""
    last = metrics.last("validation")
    if not last or not last.get("timesteps"):
        return HTML.hint("Comes with the first validation.")
    buckets = last["timesteps"]
    names = [name for name in TERMS if any(name in bucket for bucket in buckets.values())]
    return HTML.by_noise(names, buckets, last["step"])
