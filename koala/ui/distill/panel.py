"""A distillation as HTML: its state, its settings, its pictures, and the list of all runs."""

import datetime
import functools
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from koala.distill.config import DistillConfig
from koala.distill.presets import Preset
from koala.distill.run.folder import RunFolder
from koala.distill.run.records import Status
from koala.errors import UserError
from koala.ui.architecture.data import TITLES
from koala.ui.distill.curves import Metrics, number
from koala.ui.distill.fields import changed, setting
from koala.ui.html import macros
from koala.ui.messages import page_words
from koala.ui.stage import data_url
from koala.words import span

SIDE = 256  # px of a sample as it is sent
MOST_PROMPTS = 16  # that the page shows
LOG_LINES = 40  # that the page shows
STOPPING = "stopping"
UNREADABLE = "unreadable"
TIME_LIMIT = "time limit"  # in the message of a run that it ended
HTML = macros("distill/panel.html")
NONE_YET = HTML.none_yet()


@dataclass(frozen=True, kw_only=True)
class Shown:
    """One run as the page shows it. Where `config` cannot be read it is None, and `problem` says why.

    `notes` name what else is damaged and left out.
    """

    run: RunFolder
    status: Status
    metrics: Metrics
    config: DistillConfig | None = None
    problem: str = ""
    notes: tuple[str, ...] = ()
    alive: bool = False
    model: str | None = None  # name of its student among the app's models

    @property
    def name(self) -> str:
        """The name of the run's folder, by which handlers find it."""
        return self.run.name


def named(run: RunFolder, error: Exception) -> str:
    """An error's message with the run's name in place of its path on this machine."""
    return page_words(str(error)).replace(str(run.path), run.name)


def spec_title(spec: str) -> str:
    """KOALA-700M for koala-700m; a spec without a title is returned as it is."""
    return TITLES.get(spec, spec)


def _tiles(shown: Shown) -> list[tuple[str, str, str]]:
    """Title, value and note of each number about the run."""
    status, metrics = shown.status, shown.metrics
    tiles = [("Step", f"{status.step:,}", f"of {status.num_steps:,}")]
    if shown.alive:
        speed, left = status.steps_per_second, status.seconds_left
        tiles.append(("Speed", f"{speed:.3g}" if speed else "–", "steps per second"))
        tiles.append(("Time left", span(left) if left is not None else "–", ""))
        tiles.append(("So far", span(max(time.time() - status.started, 0)), ""))
    elif trained := metrics.last("train"):
        tiles.append(("Trained for", span(trained.get("seconds", 0)), ""))
    if last := metrics.last("validation") or metrics.last("train"):
        first = (metrics.validation or metrics.train)[0]
        since = f"from {number(first['loss'])}" if first["step"] < last["step"] else ""
        tiles.append(("Validation loss" if metrics.validation else "Loss", number(last["loss"]), since))
    if score := metrics.last("score"):
        since = f"from {100 * metrics.score[0]['one_object']:.0f} %" if len(metrics.score) > 1 else ""
        tiles.append(("Shapes score", f"{100 * score['one_object']:.0f} %", since))
    return tiles


def _message(shown: Shown, resumable: bool) -> str:
    """What the run does, or why it ended. A stopped run has been asked to stop: how, is of no interest here."""
    status = shown.status
    if shown.problem or status.state != "stopped" or TIME_LIMIT in status.message:
        return shown.problem or status.message
    ended = f"stopped at step {status.step:,}" if status.step else "stopped before the first step"
    return f"{ended}; it can be resumed" if resumable else ended


def standing(shown: Shown | None, link: str = "", *, resumable: bool = False) -> str:
    """The run's state, progress, speed and time left.

    `link` leads to a comparison of its student with the teacher; `resumable` says that this page can resume the run.
    """
    if shown is None:
        return NONE_YET
    status = shown.status
    percent = f"{100 * status.step / max(status.num_steps, 1):.1f}"
    waits = shown.alive and status.state in ("preparing", STOPPING)
    about = f"{spec_title(shown.config.student_spec)} from {shown.config.teacher}" if shown.config else ""
    messages = [text for text in (_message(shown, resumable), *shown.notes) if text]
    return HTML.standing(shown, about, percent, waits, _tiles(shown), messages, link)


def _command(config: DistillConfig, presets: Sequence[Preset]) -> str:
    """The command for the same run: the nearest preset, and what differs from it."""
    options = ((preset.name, changed(config, preset.config)) for preset in presets)
    name, fields = min(options, key=lambda option: len(option[1]), default=("", {}))
    words = [f"--preset {name}", *(shlex.quote(setting(n, v)) for n, v in fields.items())]
    return f"python -m koala distill {' '.join(words)} --out runs/NAME"


def about(shown: Shown | None, presets: Sequence[Preset], folder: str = "") -> str:
    """The run's settings, and the command for the same run."""
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
    return HTML.about(facts, _command(config, presets))


def takes(estimate: Mapping) -> str:
    """An estimate in two sentences, and a note about the data; `estimate` is an Estimate's JSON with `data`."""
    peak, budget = estimate["predicted_peak_bytes"], estimate["budget_bytes"]
    room = f" of {budget / 1e9:.1f} GB" if budget else ""
    memory = f"At its peak it takes {peak / 1e9:.1f} GB{room} of memory"
    if not estimate["fits"]:
        remedy = " ".join(estimate["remedies"])
        text = f"{memory}: too much." + (f" It fits with {remedy}." if remedy else "")
    else:
        most, seconds = estimate["batch_that_fits"], estimate["seconds"]
        more = f"; {most:,} pictures per pass would fit" if most else ""
        training = f"About {span(seconds)} of training here. " if seconds else ""
        text = f"{training}{memory}{more}. Encoding the pictures comes before it."
    return HTML.takes(text, estimate["fits"], estimate.get("data"))


def log(shown: Shown | None) -> str:
    """The last lines that the run printed."""
    file = shown.run.path / "log.txt" if shown else None
    if file is None or not file.is_file():
        return HTML.hint("Nothing: this run was not started here.")
    lines = file.read_text(errors="replace").replace("\r", "\n").splitlines()[-LOG_LINES:]
    return HTML.log("\n".join(lines))


def _source(file: Path) -> str:
    """A picture as a data URL; empty where the file is damaged."""
    try:
        return _encoded(file, file.stat().st_mtime_ns, SIDE)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):  # all that Pillow raises
        return ""


@functools.lru_cache(maxsize=256)
def _encoded(file: Path, changed_at: int, side: int) -> str:
    with Image.open(file) as picture:
        return data_url(picture.convert("RGB"), side, quality=88)


def pictures(shown: Shown | None) -> str:
    """The teacher's picture, the student's before training and its newest, prompt by prompt."""
    if shown is None:
        return ""
    try:
        prompts = shown.run.prompts()[:MOST_PROMPTS]
    except UserError as error:
        return HTML.problem(f"The samples cannot be shown: {named(shown.run, error)}")
    step = shown.run.last_drawn()
    columns = {"teacher": "teacher", "before": "before training"}
    columns |= {f"step-{step}": f"step {step:,}"} if step is not None else {}
    cards = []
    for k, prompt in enumerate(prompts):
        shots = []
        for stem, caption in columns.items():
            file = shown.run.samples / f"{stem}-{k}.png"
            if file.is_file():
                author = "teacher" if stem == "teacher" else f"student, {caption}"
                source = _source(file)
                text = f"{prompt}, drawn by the {author}" if source else f"samples/{file.name} is damaged"
                shots.append((source, text, caption))
        if shots:
            cards.append((prompt, shots))
    return HTML.pictures(cards)


def _date(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds).strftime("%d %b %H:%M") if seconds else ""


def _row(shown: Shown) -> dict:
    """What the list shows of a run."""
    metrics = shown.metrics
    loss = metrics.last("validation") or metrics.last("train")
    score = metrics.last("score")
    return {
        "shown": shown,
        "spec": spec_title(shown.config.student_spec) if shown.config else "",
        "loss": number(loss["loss"]) if loss else "–",
        "score": f"{100 * score['one_object']:.0f} %" if score else "–",
        "started": _date(shown.status.started),
    }


def table(all_runs: Sequence[Shown], chosen: str, compared: str) -> str:
    """Every run, the newest first. One button shows a run, another draws its curves over those of the shown one."""
    return HTML.table([_row(shown) for shown in all_runs], chosen, compared) if all_runs else ""


def unreadable(run: RunFolder, problem: str, *, alive: bool = False) -> Shown:
    """A run whose folder cannot be read; `alive` says whether a trainer works in it all the same."""
    status = Status(state=UNREADABLE, step=0, num_steps=0)
    return Shown(run=run, status=status, metrics=Metrics(), problem=problem, alive=alive)
