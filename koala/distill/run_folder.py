"""The folder of a run: config.json, status.json, metrics.jsonl, samples/, checkpoints/step-N/, student/.

The trainer writes it, everyone else reads it. Whatever is replaced is replaced by a rename, so that a reader and a
power cut see the old or the new, never half.
"""

import dataclasses
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from koala.distill.config import DistillConfig
from koala.outputs import new_file
from koala.request import RequestError

ENDED = ("done", "stopped", "failed")  # the states in which nothing runs any more


@dataclass(frozen=True, kw_only=True)
class Status:
    """status.json: how a run stands. Times are seconds since the epoch."""

    state: str  # preparing (cuts, encodes, loads), running, or how it ended
    step: int
    num_steps: int
    message: str = ""  # what is being done, or why it ended
    steps_per_second: float | None = None
    seconds_left: float | None = None
    pid: int = 0
    pid_started: float = 0.0  # tells this process from a later one of the same number
    started: float = 0.0
    updated: float = 0.0


def process_started(pid: int) -> float:
    """When a process began, in its system's own count; 0 where nobody says. Tells processes of one number apart."""
    try:
        return float(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
    except (OSError, IndexError, ValueError):
        return 0.0


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """Paths and records of one run."""

    path: Path

    @property
    def name(self) -> str:
        """What people call the run: its folder's name."""
        return self.path.name

    @property
    def student(self) -> Path:
        """The student as a diffusers folder, once a checkpoint was written."""
        return self.path / "student"

    @property
    def samples(self) -> Path:
        """teacher-K.png, before-K.png and step-N-K.png for the K-th validation prompt."""
        return self.path / "samples"

    @property
    def metrics_file(self) -> Path:
        """One JSON object per line; see `metrics`."""
        return self.path / "metrics.jsonl"

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint of a step."""
        return self.path / "checkpoints" / f"step-{step}"

    def checkpoints(self) -> list[int]:
        """Steps of the checkpoints, the oldest first."""
        names = (p.name for p in (self.path / "checkpoints").glob("step-*") if p.is_dir())
        return sorted(int(n.removeprefix("step-")) for n in names)

    def check_checkpoint(self, step: int) -> None:
        """RequestError where there is no checkpoint of this step, with the steps that there are."""
        there = self.checkpoints()
        if step not in there:
            steps = ", ".join(map(str, there)) or "none"
            raise RequestError(f"{self.path} has no checkpoint of step {step}; it has {steps}")

    def config(self) -> DistillConfig:
        """RequestError where the folder holds no run."""
        file = self.path / "config.json"
        if not file.is_file():
            raise RequestError(f"{self.path} holds no distillation: there is no config.json in it")
        return DistillConfig.from_dict(json.loads(file.read_text()))

    def write_config(self, config: DistillConfig) -> None:
        """Replace config.json."""
        self._replace("config.json", json.dumps(config.to_dict(), indent=1) + "\n")

    def status(self) -> Status | None:
        """None before the run wrote any."""
        file = self.path / "status.json"
        return Status(**json.loads(file.read_text())) if file.is_file() else None

    def write_status(self, status: Status) -> None:
        """Replace status.json."""
        self._replace("status.json", json.dumps(dataclasses.asdict(status), indent=1) + "\n")

    def metrics(self) -> Iterator[dict]:
        """Every whole line of metrics.jsonl: `kind` is train, validation or score."""
        if self.metrics_file.is_file():
            for line in self.metrics_file.read_text().splitlines():
                try:
                    yield json.loads(line)
                except ValueError:  # the line that a killed process was writing
                    continue

    def log(self, entry: dict) -> None:
        """Append one line to metrics.jsonl."""
        with self.metrics_file.open("a") as file:
            file.write(json.dumps(entry) + "\n")

    def forget_metrics_after(self, step: int) -> None:
        """Drop the lines of steps that a resumed run will take again."""
        kept = [e for e in self.metrics() if e["step"] <= step]
        self._replace("metrics.jsonl", "".join(json.dumps(e) + "\n" for e in kept))

    def size(self) -> int:
        """Bytes of everything in it."""
        return sum(f.stat().st_size for f in self.path.rglob("*") if f.is_file())

    def remove_checkpoint(self, step: int) -> None:
        """Renamed first, so that a half-removed one is never taken for a checkpoint."""
        gone = self.path / "checkpoints" / f".removed-{step}.partial"  # `remove_partials` ends what a kill interrupts
        os.rename(self.checkpoint(step), gone)
        shutil.rmtree(gone)

    def forget_checkpoints_after(self, step: int) -> None:
        """Remove those of steps that a resumed run will take again."""
        for later in self.checkpoints():
            if later > step:
                self.remove_checkpoint(later)

    def _replace(self, name: str, text: str) -> None:
        with new_file(self.path / name) as partial:
            partial.write_text(text)
