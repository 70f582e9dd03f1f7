"""The folder of a run: config.json, status.json, metrics.jsonl, samples/, checkpoints/step-N/, student/.

The trainer writes it, everyone else reads it. Whatever is replaced is replaced by a rename, so that a reader and a
power cut see the old or the new, never half. What a disk or a hand damaged is refused by name (UserError) or, where
it is one of many, left out and reported: no reader has to expect anything else.
"""

import dataclasses
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from koala.distill.config import DistillConfig
from koala.distill.run.records import Status, read_entry
from koala.errors import UserError
from koala.files.outputs import new_file
from koala.files.reading import read_json, read_object
from koala.models.cards import ModelCard
from koala.models.registry import find

_NUMBER = r"(0|[1-9][0-9]{0,14})"
_CHECKPOINT = re.compile(f"step-{_NUMBER}")
_DRAWN = re.compile(f"step-{_NUMBER}-0\\.png")


def _is_resumption(entry: object) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("changes"), dict):
        return False
    pairs = all(isinstance(pair, list) and len(pair) == 2 for pair in entry["changes"].values())
    return pairs and isinstance(entry.get("step"), int) and isinstance(entry.get("processes"), int)


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Paths and records of one run."""

    path: Path

    @property
    def name(self) -> str:
        """The run's name, which is its folder's."""
        return self.path.name

    @property
    def student(self) -> Path:
        """The student as a diffusers folder, once a checkpoint was written."""
        return self.path / "student"

    @property
    def lora(self) -> Path:
        """The LoRA of a run that trains one, under the name that diffusers looks for."""
        return self.path / "pytorch_lora_weights.safetensors"

    @property
    def samples(self) -> Path:
        """teacher-K.png, before-K.png and step-N-K.png for the K-th validation prompt."""
        return self.path / "samples"

    @property
    def metrics_file(self) -> Path:
        """One JSON object per line; see `metrics`."""
        return self.path / "metrics.jsonl"

    @property
    def lock_file(self) -> Path:
        """Locked for as long as a trainer works in the folder."""
        return self.path / ".lock"

    @property
    def resumes(self) -> str:
        """What to type to resume the run."""
        return f"python -m koala distill --resume {self.path}"

    # checkpoints

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint of a step."""
        return self.path / "checkpoints" / f"step-{step}"

    def checkpoints(self) -> list[int]:
        """Steps of the checkpoints, the oldest first."""
        return sorted(int(_CHECKPOINT.fullmatch(p.name)[1]) for p in self._in_checkpoints() if self._is_checkpoint(p))

    def strays(self) -> list[str]:
        """What is among the checkpoints but is not one, such as a copy or a file. It is ignored and not removed."""
        return sorted(p.name for p in self._in_checkpoints() if not self._is_checkpoint(p))

    def _in_checkpoints(self) -> list[Path]:
        folder = self.path / "checkpoints"
        return [p for p in folder.iterdir() if not p.name.startswith(".")] if folder.is_dir() else []

    def _is_checkpoint(self, path: Path) -> bool:
        return bool(_CHECKPOINT.fullmatch(path.name)) and path.is_dir()

    def check_checkpoint(self, step: int) -> None:
        """UserError, with the steps that exist, where there is no checkpoint of this step."""
        saved = self.checkpoints()
        if step not in saved:
            steps = ", ".join(map(str, saved)) or "none"
            raise UserError(f"{self.path} has no checkpoint of step {step}; it has {steps}")

    def remove_checkpoint(self, step: int) -> None:
        """Renamed first, so that a half-removed one is never taken for a checkpoint."""
        gone = self.path / "checkpoints" / f".removed-{step}.partial"  # `remove_partials` ends what a kill interrupts
        os.rename(self.checkpoint(step), gone)
        shutil.rmtree(gone)

    def forget_checkpoints_after(self, step: int) -> None:
        """Remove those of steps that a resumed run will take again. UserError for a file in a checkpoint's place."""
        for name in self.strays():
            if _CHECKPOINT.fullmatch(name):
                raise UserError(f"{self.path / 'checkpoints' / name} is a file where a checkpoint goes; remove it")
        for later in self.checkpoints():
            if later > step:
                self.remove_checkpoint(later)

    # config and status

    def config(self) -> DistillConfig:
        """UserError where the folder holds no run, or its config.json is damaged."""
        file = self.path / "config.json"
        saved = self.checkpoints()
        if not os.path.lexists(file) and not saved:
            raise UserError(f"{self.path} holds no distillation: there is no config.json in it")
        remedy = (
            f"its checkpoints hold it too: {self.resumes}" if saved else "there is no checkpoint yet, so start over"
        )
        try:
            return DistillConfig.from_dict(read_object(file, remedy))
        except UserError as error:
            if str(file) in str(error):
                raise
            raise UserError(f"{file} is damaged: {error}; {remedy}") from error

    def write_config(self, config: DistillConfig) -> None:
        """Replace config.json."""
        self._replace("config.json", json.dumps(config.to_dict(), indent=1) + "\n")

    def status(self) -> Status | None:
        """None before the run wrote any; UserError where status.json is damaged."""
        file = self.path / "status.json"
        if not os.path.lexists(file):
            return None
        return Status.read(file, f"nothing else depends on it; it is rewritten by {self.resumes}")

    def write_status(self, status: Status) -> None:
        """Replace status.json."""
        self._replace("status.json", json.dumps(dataclasses.asdict(status), indent=1) + "\n")

    # history

    def history(self) -> list[dict]:
        """How the run went on, the oldest first: `step` from which, on how many `processes`, and `changes` of the
        config, field -> [before, after]. UserError where history.json is damaged.
        """
        file = self.path / "history.json"
        if not os.path.lexists(file):
            return []
        remedy = "it is started anew when the run is resumed"
        entries = read_json(file, remedy)
        if not isinstance(entries, list) or not all(map(_is_resumption, entries)):
            raise UserError(f"{file} is damaged: it holds no history of a run; {remedy}")
        return entries

    def write_history(self, entries: list[dict]) -> None:
        """Replace history.json."""
        self._replace("history.json", json.dumps(entries, indent=1) + "\n")

    # metrics

    def metrics(self) -> Iterator[dict]:
        """Every whole line of metrics.jsonl: `kind` is train, validation or score."""
        return (entry for entry in map(read_entry, self._lines()) if entry is not None)

    def log(self, entry: dict) -> None:
        """Append one line to metrics.jsonl."""
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def forget_metrics_after(self, step: int) -> int:
        """Drop the lines of steps that a resumed run will take again; how many were damaged, and are gone as well."""
        lines = list(self._lines())
        entries = [entry for entry in map(read_entry, lines) if entry is not None]
        kept = [e for e in entries if e["step"] <= step]
        self._replace("metrics.jsonl", "".join(json.dumps(e) + "\n" for e in kept))
        return len(lines) - len(entries)

    def _lines(self) -> Iterator[bytes]:
        """Lines that are ended; the last may be one that a killed process was writing."""
        try:
            content = self.metrics_file.read_bytes()
        except FileNotFoundError:
            return
        except OSError as error:
            raise UserError(f"{self.metrics_file} cannot be read ({error.strerror}); remove it") from error
        yield from (line for line in content.split(b"\n")[:-1] if line.strip())

    # samples and student

    def prompts(self) -> list[str]:
        """What the samples were drawn from, none before the first; UserError where prompts.json is damaged."""
        file = self.samples / "prompts.json"
        if not os.path.lexists(file):
            return []
        remedy = "the next validation rewrites it"
        texts = read_json(file, remedy)
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise UserError(f"{file} is damaged: it holds no list of prompts; {remedy}")
        return texts

    def write_prompts(self, prompts: tuple[str, ...]) -> None:
        """Replace samples/prompts.json."""
        self._replace("samples/prompts.json", json.dumps(prompts, indent=1) + "\n")

    def last_drawn(self) -> int | None:
        """The newest step of which there are samples, None before the first."""
        matches = (_DRAWN.fullmatch(p.name) for p in (self.samples.iterdir() if self.samples.is_dir() else ()))
        return max((int(match[1]) for match in matches if match), default=None)

    def student_card(self) -> ModelCard:
        """The student as a model; UserError where its folder cannot be read."""
        return find(str(self.student))

    # the wish to stop

    def ask_to_stop(self, status: Status) -> None:
        """Leave word for the process that a status names: it saves and ends. Needs no signal, which Windows lacks."""
        with new_file(self._wish, durable=False) as file:
            file.write_text(f"{status.pid} {status.pid_started!r}\n")

    def is_asked_to_stop(self, pid: int, pid_started: float) -> bool:
        """Whether this very process was asked."""
        try:
            return self._wish.read_text() == f"{pid} {pid_started!r}\n"
        except (OSError, ValueError):  # nobody asked
            return False

    def give_up(self) -> None:
        """Leave word for the other processes of a run that this one failed."""
        with new_file(self._failure, durable=False) as file:
            file.write_text("")

    def is_given_up(self) -> bool:
        """Whether one process of the run failed."""
        return self._failure.exists()

    def forget_wishes(self) -> None:
        """Remove both words, once they were heard."""
        self._wish.unlink(missing_ok=True)
        self._failure.unlink(missing_ok=True)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """No other trainer in the folder while the block lasts; UserError where there is one."""
        try:
            with FileLock(self.lock_file, timeout=1):  # a look at it takes no time
                yield
        except Timeout as error:
            raise UserError(
                f"{self.path} is being trained by another process; stop that one first, or choose another folder with "
                f"--out {self.path}-2"
            ) from error

    # a run that has not begun

    def holds_run(self) -> bool:
        """Whether there is anything to resume, readable or not."""
        return os.path.lexists(self.path / "config.json") or bool(self.checkpoints())

    def forget_beginning(self) -> None:
        """Remove what a run wrote that was refused before it began."""
        for name in ("config.json", "status.json"):
            (self.path / name).unlink(missing_ok=True)

    def forget_claim(self, *, folder: bool) -> None:
        """Remove the lock, and the `folder` too where it was made for this run and holds nothing else."""
        self.lock_file.unlink(missing_ok=True)
        if folder and not any(self.path.iterdir()):
            self.path.rmdir()

    @property
    def _wish(self) -> Path:
        return self.path / ".stop"

    @property
    def _failure(self) -> Path:
        return self.path / ".failed"

    def size(self) -> int:
        """Bytes of everything in it."""
        return sum(f.stat().st_size for f in self.path.rglob("*") if f.is_file())

    def _replace(self, name: str, text: str) -> None:
        with new_file(self.path / name) as partial:
            partial.write_text(text)


_FILES = ("config.json", "status.json", "metrics.jsonl", "history.json", "student.json", "student", "samples",
          "pytorch_lora_weights.safetensors")  # fmt: skip


def check_place(run: RunFolder) -> None:
    """UserError where a new run would replace anything that is not of a run without checkpoints."""
    if run.path.exists() and not run.path.is_dir():
        raise UserError(f"{run.path} is a file; name a folder, for example --out {run.path}-run")
    elsewhere = f"choose another folder, for example --out {run.path}-2"
    if run.checkpoints():
        raise UserError(f"{run.path} already holds a run; resume it with --resume {run.path}, or {elsewhere}")
    if _is_run(run):
        return
    present = [name for name in (*_FILES, "checkpoints") if _holds_something(run, name)]
    if present:
        raise UserError(
            f"{run.path} holds {', '.join(present)} that no run wrote, and a run would write there; {elsewhere}"
        )


def _is_run(run: RunFolder) -> bool:
    """Whether a run began here: its config or its status can be read."""
    try:
        run.config()
        return True
    except UserError:
        pass
    try:
        return run.status() is not None
    except UserError:
        return False


def _holds_something(run: RunFolder, name: str) -> bool:
    place = run.path / name
    return place.is_symlink() or place.is_file() or place.is_dir() and any(place.iterdir())
