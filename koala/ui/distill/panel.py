"""A distillation as HTML: how it stands, what it is made of, what it draws, and the list of all of them."""

import datetime
import functools
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image

from koala.distill.config import DistillConfig
from koala.distill.presets import Preset
from koala.distill.run.folder import RunFolder
from koala.distill.run.records import Status
from koala.errors import UserError
from koala.ui.architecture.data import TITLES
from koala.ui.distill.curves import number
from koala.ui.distill.fields import changed, setting
from koala.ui.distill.metrics import Metrics
from koala.ui.stage import data_url
from koala.words import span

SIDE = 256  # px of a sample as it is sent
MOST_PROMPTS = 16  # that the page shows
LOG_LINES = 40  # that the page shows
STOPPING = "stopping"
UNREADABLE = "unreadable"
NONE_YET = (
    '<section class="k-panel kd-empty"><h3>A student of your own</h3><p>Cut a student out of the teacher and train it '
    "to feel what the teacher feels. Choose how long it may take and press Start: the loss falls, pictures come back, "
    "and in the end the student is one more model of this app.</p></section>"
)


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One run as the page knows it. `config` is None where it cannot be read, and `problem` says why; `notes` say what
    else is damaged, and left out."""

    run: RunFolder
    status: Status
    metrics: Metrics
    config: DistillConfig | None = None
    problem: str = ""
    notes: tuple[str, ...] = ()
    alive: bool = False
    model: str | None = None  # its student's name among the app's models

    @property
    def name(self) -> str:
        """Of the run's folder; handlers know a run by it."""
        return self.run.name


def named(run: RunFolder, error: Exception) -> str:
    """An error's words, which name the run and not the folders of this machine."""
    return str(error).replace(str(run.path), run.name)


def spec_title(spec: str) -> str:
    """KOALA-700M for koala-700m; a spec that has no title stays as it is written."""
    return TITLES.get(spec, spec)


def _tile(title: str, value: str, note: str = "") -> str:
    return f"<div><dt>{title}</dt><dd><b>{value}</b> <span>{note}</span></dd></div>"


def _tiles(shown: Shown) -> str:
    status, metrics = shown.status, shown.metrics
    tiles = [_tile("Step", f"{status.step:,}", f"of {status.num_steps:,}")]
    if shown.alive:
        speed = status.steps_per_second
        tiles.append(_tile("Speed", f"{speed:.3g}" if speed else "–", "steps per second"))
        left = status.seconds_left
        tiles.append(_tile("Time left", span(left) if left is not None else "–"))
        tiles.append(_tile("So far", span(max(time.time() - status.started, 0))))
    elif trained := metrics.last("train"):
        tiles.append(_tile("Trained for", span(trained.get("seconds", 0))))
    if last := metrics.last("validation") or metrics.last("train"):
        first = (metrics.validation or metrics.train)[0]
        since = f"from {number(first['loss'])}" if first["step"] < last["step"] else ""
        tiles.append(_tile("Validation loss" if metrics.validation else "Loss", number(last["loss"]), since))
    if score := metrics.last("score"):
        since = f"from {100 * metrics.score[0]['one_object']:.0f} %" if len(metrics.score) > 1 else ""
        tiles.append(_tile("Shapes score", f"{100 * score['one_object']:.0f} %", since))
    return f'<dl class="kd-tiles">{"".join(tiles)}</dl>'


def standing(shown: Shown | None, link: str = "") -> str:
    """How the run stands now: state, progress, speed, time left; `link` leads to where its student draws."""
    if shown is None:
        return NONE_YET
    status = shown.status
    share = 100 * status.step / max(status.num_steps, 1)
    waits = shown.alive and status.state in ("preparing", STOPPING)
    about = ""
    if shown.config:
        about = f"{spec_title(shown.config.student_spec)} from {shown.config.teacher}"
    message = shown.problem or status.message
    said = "".join(
        f'<p class="kd-message">{escape(text[:1].upper() + text[1:])}</p>' for text in (message, *shown.notes)
    )
    student = ""
    if link:
        student = (
            f'<p class="kd-student">Its student is a model of this app, <b>{escape(shown.model)}</b>: '
            f'<a href="{escape(link)}">draw with it beside its teacher</a></p>'
        )
    return (
        f'<section class="k-panel kd-run" data-state="{escape(status.state)}" aria-label="Run {escape(shown.name)}">'
        f'<div class="kd-head"><h3>{escape(shown.name)}</h3><span class="kd-state" role="status">'
        f"{escape(status.state)}</span><small>{escape(about)}</small></div>"
        f'<div class="kd-progress" data-waits="{str(waits).lower()}" role="progressbar" aria-label="Progress" '
        f'aria-valuemin="0" aria-valuemax="{status.num_steps}" aria-valuenow="{status.step}">'
        f'<i style="width:{share:.1f}%"></i></div>{_tiles(shown)}'
        f"{said}{student}</section>"
    )


def _command(config: DistillConfig, presets: Sequence[Preset]) -> str:
    """The run for a terminal: the preset that is nearest to it, and what differs from that."""
    name, fields = min(
        ((p.name, changed(config, p.config)) for p in presets), key=lambda found: len(found[1]), default=("", {})
    )
    words = [f"--preset {name}", *(shlex.quote(setting(n, v)) for n, v in fields.items())]
    return f"python -m koala distill {' '.join(words)} --out runs/NAME"


def about(shown: Shown | None, presets: Sequence[Preset], folder: str = "") -> str:
    """What the run is made of, and the same for a terminal."""
    if shown is None or shown.config is None:
        return ""
    config = shown.config
    facts = [
        ("Features", f"{', '.join(config.features)} at {', '.join(config.stages)}"),
        ("Captions", config.captions),
        ("Data", config.data),
        ("Training", f"{config.batch_size} pictures per step, {config.optimizer}, {config.learning_rate:g}"),
        ("Seed", str(config.seed)),
        *([("Folder", folder)] if folder else []),
    ]
    rows = "".join(f"<div><dt>{name}</dt><dd>{escape(text)}</dd></div>" for name, text in facts)
    return (
        f'<dl class="kd-facts">{rows}</dl><p class="k-note">The same from a terminal: '
        f"<code>{escape(_command(config, presets))}</code></p>"
    )


def takes(found: Mapping) -> str:
    """An estimate in two sentences, and what the data is; `found` is an Estimate's JSON with `data`."""
    data = f'<p class="k-note">{escape(found["data"])}</p>' if found.get("data") else ""
    peak, budget = found["predicted_peak_bytes"], found["budget_bytes"]
    room = f" of {budget / 1e9:.1f} GB" if budget else ""
    memory = f"At its peak it takes {peak / 1e9:.1f} GB{room} of memory"
    if not found["fits"]:
        remedy = " ".join(found["remedies"])
        return f'<p class="k-no">{memory}: too much. {f"It fits with {escape(remedy)}." if remedy else ""}</p>' + data
    most = found["batch_that_fits"]
    more = f"; {most:,} pictures per pass would fit" if most else ""
    training = f"About {span(found['seconds'])} of training here. " if found["seconds"] else ""
    return f"<p>{training}{memory}{more}. Encoding the pictures comes before it.</p>{data}"


def log(shown: Shown | None) -> str:
    """The last lines that the run printed."""
    file = shown.run.path / "log.txt" if shown else None
    if file is None or not file.is_file():
        return '<p class="kd-hint">Nothing: it was not started here.</p>'
    lines = file.read_text(errors="replace").replace("\r", "\n").splitlines()[-LOG_LINES:]
    return f'<pre class="kd-log" tabindex="0">{escape(chr(10).join(lines))}</pre>'


def _shot(file: Path, text: str, title: str) -> str:
    try:
        inside = f'<img src="{_picture(file)}" alt="{escape(text)}">'
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # Pillow's words for a damaged file
        inside = f'<p class="k-no">samples/{escape(file.name)} is damaged</p>'
    return f"<figure>{inside}<figcaption>{title}</figcaption></figure>"


def _picture(file: Path, side: int = SIDE) -> str:
    return _encoded(file, file.stat().st_mtime_ns, side)


@functools.lru_cache(maxsize=256)
def _encoded(file: Path, changed_at: int, side: int) -> str:
    with Image.open(file) as picture:
        return data_url(picture.convert("RGB"), side, quality=88)


def pictures(shown: Shown | None) -> str:
    """Teacher, student before and student now, prompt by prompt."""
    if shown is None:
        return ""
    try:
        prompts = shown.run.prompts()[:MOST_PROMPTS]
    except UserError as error:
        return f'<p class="k-no">The samples cannot be shown: {escape(named(shown.run, error))}</p>'
    step = shown.run.last_drawn()
    columns = [("teacher", "teacher"), ("before", "before training")]
    columns += [(f"step-{step}", f"step {step:,}")] if step is not None else []
    cards = []
    for k, prompt in enumerate(prompts):
        shots = []
        for stem, title in columns:
            picture = shown.run.samples / f"{stem}-{k}.png"
            if picture.is_file():
                drawn_by = "teacher" if stem == "teacher" else "student, " + title
                shots.append(_shot(picture, f"{prompt}, drawn by the {drawn_by}", title))
        if shots:
            cards.append(f'<li><p>{escape(prompt)}</p><div class="kd-shots">{"".join(shots)}</div></li>')
    return f'<h4>Teacher, student before, student now</h4><ul class="kd-grid">{"".join(cards)}</ul>' if cards else ""


def _date(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).strftime("%d %b %H:%M") if seconds else ""


def _row(shown: Shown, chosen: str, beside: str) -> str:
    status, name = shown.status, escape(shown.name)
    loss = next((number(e["loss"]) for e in (shown.metrics.last("validation"), shown.metrics.last("train")) if e), "–")
    score = shown.metrics.last("score")
    rate = f"{100 * score['one_object']:.0f} %" if score else "–"
    spec = spec_title(shown.config.student_spec) if shown.config else ""
    is_chosen, is_beside = shown.name == chosen, shown.name == beside
    other = (
        ""
        if is_chosen
        else f'<button type="button" class="kd-beside" data-beside="{name}" aria-pressed="{str(is_beside).lower()}" '
        f'aria-label="Compare with {name}">{"compared" if is_beside else "compare"}</button>'
    )
    return (
        f'<tr data-chosen="{str(is_chosen).lower()}"><th scope="row"><button type="button" class="kd-choose" '
        f'data-run="{name}" aria-pressed="{str(is_chosen).lower()}">{name}</button><small>{escape(spec)}</small></th>'
        f'<td class="kd-state" data-state="{escape(status.state)}">{escape(status.state)}</td>'
        f"<td>{status.step:,}<small>of {status.num_steps:,}</small></td><td>{loss}</td>"
        f"<td>{rate}</td><td>{_date(status.started)}</td>"
        f"<td>{other}</td></tr>"
    )


def table(all_runs: Sequence[Shown], chosen: str, beside: str) -> str:
    """Every run, the newest first; a click shows it, another lays it over the shown one's curves."""
    if not all_runs:
        return ""
    rows = "".join(_row(shown, chosen, beside) for shown in all_runs)
    heads = "".join(f'<th scope="col">{h}</th>' for h in ("run", "state", "step", "loss", "score", "begun"))
    return (
        f'<section class="k-panel" aria-labelledby="kd-all"><h3 id="kd-all">All runs</h3>'
        f'<div class="kd-scroll" role="region" aria-label="All runs" tabindex="0"><table><thead><tr>{heads}'
        f'<th><span class="k-sr">curves</span></th></tr></thead><tbody>{rows}</tbody></table></div></section>'
    )


def unreadable(run: RunFolder, problem: str, *, alive: bool = False) -> Shown:
    """A folder that looks like a run and cannot be read; `alive` says whether a trainer works in it all the same."""
    status = Status(state=UNREADABLE, step=0, num_steps=0)
    return Shown(run=run, status=status, metrics=Metrics(), problem=problem, alive=alive)
