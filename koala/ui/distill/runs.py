"""The app's runs: what a visitor may start, and every trained student offered as a model of the session."""

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
from koala.files.read_json import read_object
from koala.models.cards import CARDS, EMBEDDED, ModelCard
from koala.models.layout import STEMS
from koala.models.locate import availability
from koala.ui.catalogue import portable_name
from koala.ui.distill.metrics import Follower
from koala.ui.distill.panel import STOPPING, Shown, named, unreadable
from koala.ui.session import Session
from koala.unet.specs import student

PUBLIC_MINUTES = 12.0  # that a stranger's run may take
PUBLIC_STEPS = 1000  # presets with more are for one's own machine
PUBLIC_KEPT = 8  # runs that a public app keeps


class Runs:
    """One app's runs. Where strangers reach the app, they have a folder of their own, and one run at a time."""

    def __init__(self, session: Session, root: Path | None = None):
        self.session = session
        self.root = root or (runs.runs_root() if session.local else runs.runs_root() / ".public")
        self._followers: dict[Path, Follower] = {}
        self._asked: set[str] = set()  # to stop
        self._begun_by: dict[str, str] = {}  # run -> the page that started it
        self._offered: dict[str, int] = {}  # run -> the age of its weights that the session has
        self._lock = threading.RLock()

    @property
    def presets(self) -> list[Preset]:
        """Those that a visitor may start."""
        return [p for p in PRESETS.values() if self.session.local or p.config.num_steps <= PUBLIC_STEPS]

    def base(self, preset: str | None) -> DistillConfig:
        """What a visitor's settings go over; None is an earlier run's own, which has every field."""
        if preset is None and self.session.local:
            return DistillConfig()
        found = next((p for p in self.presets if p.name == preset), None)
        if found is None:
            raise UserError(f"choose one of {', '.join(p.title for p in self.presets)}")
        return found.config

    # --- what is there

    def all(self) -> list[Shown]:
        """Every run, the newest first."""
        return [self._shown(run) for run in runs.list_runs(self.root)]

    def find(self, name: str) -> RunFolder:
        """The run of this name; UserError where it is gone."""
        for run in runs.list_runs(self.root):
            if run.name == name:
                return run
        raise UserError(f"there is no run {name!r} any more")

    def _shown(self, run: RunFolder) -> Shown:
        follower = self._followers.setdefault(run.path, Follower(run))
        try:
            config, status, metrics = run.config(), runs.state(run), follower.read()
        except UserError as error:
            return unreadable(run, self._told(run, error), alive=runs.held(run))
        alive = status.state not in (*ENDED, runs.INTERRUPTED)  # told by the same look as the state
        if not alive:
            self._asked.discard(run.name)
        elif run.name in self._asked:
            status = dataclasses.replace(status, state=STOPPING, message="it saves after the step that it is in")
        notes, model = [], None
        if damaged := metrics.damaged:
            notes.append(f"{damaged} damaged line{'s' if damaged > 1 else ''} of metrics.jsonl left out")
        if strays := run.strays():
            notes.append(f"left out of checkpoints/, as no checkpoints: {', '.join(strays)}")
        try:
            model = self._offer(run, config)
        except UserError as error:
            notes.append(f"its student is no model of this app: {self._told(run, error)}")
        return Shown(
            run=run, status=status, metrics=metrics, config=config, notes=tuple(notes), alive=alive, model=model
        )

    def _told(self, run: RunFolder, error: UserError) -> str:
        """On one's own machine with the paths that its remedy needs; strangers learn nothing of its folders."""
        return str(error) if self.session.local else named(run, error)

    def may_stop(self, name: str, visitor: str) -> bool:
        """On one's own machine every run; elsewhere one that this page started."""
        return self.session.local or self._begun_by.get(name) == visitor

    # --- what can be done

    def start(self, config: DistillConfig, visitor: str) -> str:
        """Begin a run; its name. UserError where it cannot run, or another does."""
        config = self._checked(config)
        with self._lock:
            self._one_at_a_time()
            if not self.session.local:
                self._make_room()
            name = runs.new_name(self.root, config.student_spec)
            runs.start(config, name, self.root)
            self._begun_by[name] = visitor
        return name

    def estimate(self, config: DistillConfig) -> dict:
        """What a run would take, before it is begun."""
        self._own_machine()
        return runs.estimate(self._checked(config))

    def stop(self, name: str, visitor: str) -> None:
        """Have a run save and end after its step; UserError where `may_stop` says no, or it is not running."""
        if not self.may_stop(name, visitor):
            raise UserError("somebody else started this run; it ends by itself within minutes")
        runs.stop(self.find(name))
        self._asked.add(name)

    def resume(self, name: str, step: int | None = None) -> None:
        """Go on from the last checkpoint, or that of `step`. UserError on a public server, or beside a live run."""
        self._own_machine()
        with self._lock:
            self._one_at_a_time()
            runs.resume(self.find(name), step)

    def delete(self, name: str) -> None:
        """Remove a run and its student. UserError on a public server, where it is running, or its student draws."""
        self._own_machine()
        with self._lock:
            self._delete(self.find(name))

    def _one_at_a_time(self) -> None:
        if live := next((s.name for s in self.all() if s.alive), None):
            raise UserError(f"{live} is still running; wait for its end, or stop it first")

    def _own_machine(self) -> None:
        if not self.session.local:
            raise UserError("on a public server runs are only started; start the app on your own machine for the rest")

    def _delete(self, run: RunFolder) -> None:
        model = _model(run)
        if run.name in self._offered:
            if self.session.device.in_use(model):
                raise UserError(f"{model} is drawing or being loaded just now; delete {run.name} when it is done")
            self.session.remove(model)
            del self._offered[run.name]
        runs.delete(run)
        self._followers.pop(run.path, None)

    def _make_room(self) -> None:
        """The oldest of a public app's runs go; those whose students draw just now stay for once."""
        for run in runs.list_runs(self.root)[PUBLIC_KEPT - 1 :]:
            if not self.session.device.in_use(_model(run)):
                self._delete(run)

    def _checked(self, config: DistillConfig) -> DistillConfig:
        """The config in names that another process knows; UserError before a process is begun for nothing."""
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

    # --- the students

    def _offer(self, run: RunFolder, config: DistillConfig) -> str | None:
        """Have the student of a run among the session's models, in its newest state; its name there.

        UserError where its folder cannot be read.
        """
        weights = run.student / "unet" / f"{STEMS['unet']}.safetensors"
        if not run.checkpoints() or not weights.is_file():
            return None  # not there, or nothing but the untrained cut
        name, age = _model(run), weights.stat().st_mtime_ns
        with self._lock:
            known = run.name in self._offered
            if self._offered.get(run.name) == age or known and self.session.device.in_use(name):
                return name  # one that draws just now is renewed at the next look
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
    """What an embedded teacher scored itself, by suite; of other teachers nobody knows."""
    file = EMBEDDED / "scores" / f"{config.teacher}.json"
    if config.teacher not in CARDS or not file.is_file():
        return {}
    return {suite: found["all"]["rate"] for suite, found in read_object(file)["scores"].items()}
