"""The app's runs: what a visitor may start, and the trained students, which the session offers as models."""

import dataclasses
import threading
from pathlib import Path

from koala.distill.config import DistillConfig
from koala.distill.loss.pairs import feature_pairs
from koala.distill.presets import PRESETS, Preset
from koala.distill.run import manager as runs
from koala.distill.run.folder import RunFolder
from koala.distill.run.records import ENDED
from koala.errors import UserError
from koala.files.reading import read_object
from koala.models.cards import CARDS, EMBEDDED, ModelCard
from koala.models.layout import STEMS
from koala.models.locate import availability
from koala.ui.catalogue import portable_name
from koala.ui.distill.curves import Follower
from koala.ui.distill.panel import STOPPING, Shown, named, unreadable
from koala.ui.messages import page_words
from koala.ui.session import Session
from koala.unet.specs import student
from koala.words import many

PUBLIC_MINUTES = 12.0  # that a run on a public server may take
PUBLIC_STEPS = 1000  # presets with more steps are not offered on a public server
PUBLIC_KEPT = 8  # runs that a public app keeps


class Runs:
    """One app's runs, one at a time. On a public server they have a folder of their own."""

    def __init__(self, session: Session, root: Path | None = None):
        self.session = session
        self.root = root or (runs.runs_root() if session.local else runs.runs_root() / ".public")
        self._followers: dict[Path, Follower] = {}
        self._stopping: set[str] = set()  # runs that were asked to stop
        self._started_by: dict[str, str] = {}  # run -> the page that started it
        self._offered: dict[str, int] = {}  # run -> time stamp (ns) of the weights that the session has
        self._lock = threading.RLock()

    @property
    def presets(self) -> list[Preset]:
        """The presets that a visitor may start."""
        return [p for p in PRESETS.values() if self.session.local or _is_short(p)]

    def base(self, preset: str | None) -> DistillConfig:
        """The config that a visitor's settings change; None is that of an earlier run, which sets every field."""
        if preset is None and self.session.local:
            return DistillConfig()
        config = next((p.config for p in self.presets if p.name == preset), None)
        if config is None:
            raise UserError(f"choose one of {', '.join(p.title for p in self.presets)}")
        return config

    # --- finding runs

    def all(self) -> list[Shown]:
        """Every run, the newest first."""
        return [self._shown(run) for run in runs.list_runs(self.root)]

    def find(self, name: str) -> RunFolder:
        """The run of this name; UserError where there is none."""
        for run in runs.list_runs(self.root):
            if run.name == name:
                return run
        raise UserError(f"there is no run {name!r} any more")

    def _shown(self, run: RunFolder) -> Shown:
        follower = self._followers.setdefault(run.path, Follower(run))
        try:
            config, status, metrics = run.config(), runs.state(run), follower.read()
        except UserError as error:
            return unreadable(run, self._message(run, error), alive=runs.held(run))
        alive = status.state not in (*ENDED, runs.INTERRUPTED)
        if not alive:
            self._stopping.discard(run.name)
        elif run.name in self._stopping:
            status = dataclasses.replace(status, state=STOPPING, message="it saves after its current step")
        notes, model = [], None
        if damaged := metrics.damaged:
            notes.append(f"{many(damaged, 'damaged line')} of metrics.jsonl left out")
        if strays := run.strays():
            notes.append(f"not checkpoints, and left out: {', '.join(strays)}")
        try:
            model = self._offer(run, config)
        except UserError as error:
            notes.append(f"its student cannot be loaded: {self._message(run, error)}")
        return Shown(
            run=run, status=status, metrics=metrics, config=config, notes=tuple(notes), alive=alive, model=model
        )

    def _message(self, run: RunFolder, error: UserError) -> str:
        """The error's message: with paths on one's own machine, without them on a public server."""
        return page_words(str(error)) if self.session.local else named(run, error)

    def may_stop(self, name: str, visitor: str) -> bool:
        """Whether this page may stop the run: any run on one's own machine, on a public server only its own."""
        return self.session.local or self._started_by.get(name) == visitor

    # --- starting, stopping, deleting

    def start(self, config: DistillConfig, visitor: str) -> str:
        """Start a run and return its name. UserError where it cannot run, or another is running."""
        config = self._checked(config)
        with self._lock:
            self._one_at_a_time()
            if not self.session.local:
                self._make_room()
            name = runs.new_name(self.root, config.student_spec)
            runs.start(config, name, self.root)
            self._started_by[name] = visitor
        return name

    def estimate(self, config: DistillConfig) -> dict:
        """The memory and time that a run would take."""
        self._own_machine()
        return runs.estimate(self._checked(config))

    def stop(self, name: str, visitor: str) -> None:
        """Have a run save and end after its current step. UserError where `may_stop` is false, or it is not running."""
        if not self.may_stop(name, visitor):
            raise UserError("another visitor started this run; it ends by itself within minutes")
        runs.stop(self.find(name))
        self._stopping.add(name)

    def resume(self, name: str, step: int | None = None) -> None:
        """Resume from the last checkpoint, or that of `step`. UserError on a public server, or while another runs."""
        self._own_machine()
        with self._lock:
            self._one_at_a_time()
            runs.resume(self.find(name), step)

    def delete(self, name: str) -> None:
        """Delete a run and its student. UserError on a public server, or while it is running or its student draws."""
        self._own_machine()
        with self._lock:
            self._delete(self.find(name))

    def _one_at_a_time(self) -> None:
        if live := next((s.name for s in self.all() if s.alive), None):
            raise UserError(f"{live} is still running; wait until it ends, or stop it first")

    def _own_machine(self) -> None:
        if not self.session.local:
            raise UserError("a public server only starts runs; start the app on your own machine for the rest")

    def _delete(self, run: RunFolder) -> None:
        model = _model(run)
        if run.name in self._offered:
            if self.session.device.in_use(model):
                raise UserError(f"{model} is being loaded or is drawing; delete {run.name} afterwards")
            self.session.remove(model)
            del self._offered[run.name]
        runs.delete(run)
        self._followers.pop(run.path, None)

    def _make_room(self) -> None:
        """Delete the oldest runs of a public server, except those whose students are in use."""
        for run in runs.list_runs(self.root)[PUBLIC_KEPT - 1 :]:
            if not self.session.device.in_use(_model(run)):
                self._delete(run)

    def _checked(self, config: DistillConfig) -> DistillConfig:
        """The config with names that another process knows; UserError where it cannot run."""
        names = {"teacher": config.teacher} | ({"student_init": config.student_init} if config.student_init else {})
        cards = {field: self.session.catalogue.card(name) for field, name in names.items()}
        for card in cards.values():
            here, needs = availability(card)
            if not here:
                raise UserError(needs)
        teacher = cards["teacher"].spec
        if teacher:
            feature_pairs(config, student(config.student_spec, teacher), teacher)
        config = dataclasses.replace(config, **{field: portable_name(card) for field, card in cards.items()})
        if self.session.local:
            return config
        minutes = min(config.time_limit or PUBLIC_MINUTES, PUBLIC_MINUTES)
        return dataclasses.replace(config, time_limit=minutes)

    # --- students as models

    def _offer(self, run: RunFolder, config: DistillConfig) -> str | None:
        """Offer the newest student of a run as a model of the session; its name there, None where it has none yet.

        UserError where its folder cannot be read.
        """
        weights = run.student / "unet" / f"{STEMS['unet']}.safetensors"
        if not run.checkpoints() or not weights.is_file():
            return None  # there is none, or it is not trained yet
        name, age = _model(run), weights.stat().st_mtime_ns
        with self._lock:
            known = run.name in self._offered
            if self._offered.get(run.name) == age or known and self.session.device.in_use(name):
                return name  # one that is in use is updated the next time
            in_memory = known and self.session.loader.state(name).state == "ready"
            if known:
                self.session.remove(name)
            self.session.catalogue.add(self._card(run, config, name))
            self._offered[run.name] = age
            if in_memory:
                self.session.loader.want(name)
        return name

    def _card(self, run: RunFolder, config: DistillConfig, name: str) -> ModelCard:
        card = run.student_card()
        size = {side: config.resolution or getattr(card, side) for side in ("width", "height")}
        named = {"name": name, "title": f"{run.name} (distilled)", "teacher": card.teacher or config.teacher}
        return dataclasses.replace(card, **named, **size)


def _model(run: RunFolder) -> str:
    return f"distilled-{run.name}"


def teacher_scores(config: DistillConfig) -> dict[str, float]:
    """The scores of an embedded teacher by suite; empty for other teachers, whose scores are not known."""
    file = EMBEDDED / "scores" / f"{config.teacher}.json"
    if config.teacher not in CARDS or not file.is_file():
        return {}
    return {suite: score["all"]["rate"] for suite, score in read_object(file)["scores"].items()}


def _is_short(preset: Preset) -> bool:
    """Whether a public server offers it. A step of the other methods costs half as much again as KOALA's."""
    return preset.config.method == "koala" and preset.config.num_steps <= PUBLIC_STEPS
