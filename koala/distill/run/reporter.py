"""What the trainer reports of its work: status.json, often enough for someone who watches, and the mean losses."""

import dataclasses
import math
import os
import time

import torch

from koala import process
from koala.distill.config import DistillConfig
from koala.distill.loss.step import Losses
from koala.distill.processes import Processes
from koala.distill.run.folder import RunFolder
from koala.distill.run.records import Status

INTERVAL = 1.0  # seconds between two writes for steps


class Reporter:
    """Only the main process of a run is `active`; the others write nothing."""

    def __init__(self, run: RunFolder, num_steps: int, *, active: bool):
        self.run, self.active = run, active
        self.held = False  # while it is True, nothing is written ...
        self._reported = False  # ... until the run has to wait
        self._written = -math.inf  # by the monotonic clock
        pid = os.getpid()
        self.status = Status(
            state="preparing",
            step=0,
            num_steps=num_steps,
            pid=pid,
            pid_started=process.started(pid),
            started=time.time(),
        )

    def hold(self, held: bool) -> None:
        """Hold all writes back, or write from here on."""
        self.held = held

    def say(self, state: str, message: str) -> None:
        """Report what is being done now."""
        self._write(state=state, message=message)

    def step(self, done: int, steps_per_second: float) -> None:
        """Report how far the run is; written at most once per INTERVAL."""
        left = (self.status.num_steps - done) / steps_per_second if steps_per_second > 0 else None
        changes = dict(state="running", message="", step=done, seconds_left=left)
        changes["steps_per_second"] = steps_per_second or None
        if time.monotonic() - self._written < INTERVAL:
            self.status = dataclasses.replace(self.status, **changes)
        else:
            self._write(**changes)

    def waits(self) -> None:
        """Report that the run waits while the app draws."""
        self._reported = True
        self._write(message="waits while the app draws")

    def end(self, state: str, message: str) -> None:
        """Write the last status: done, stopped or failed."""
        self.held = False
        self._write(state=state, message=message, seconds_left=None)

    def _write(self, **changes) -> None:
        self.status = dataclasses.replace(self.status, **changes, updated=time.time())
        self._written = time.monotonic()
        if self.active and (self._reported or not self.held):
            self.run.path.mkdir(parents=True, exist_ok=True)
            self.run.write_status(self.status)


class Means:
    """Means of every term since they were last taken, over passes and processes."""

    def __init__(self, processes: Processes, config: DistillConfig, since: float):
        self.processes, self.config, self.since = processes, config, since
        self.names: list[str] = []
        self.sums: list[torch.Tensor] = []

    def add(self, losses: Losses) -> None:
        """Add one pass, without waiting for the device."""
        self.names = ["loss", *losses.terms]
        self.sums.append(torch.stack([losses.total.detach(), *(v.detach() for v in losses.terms.values())]))

    def take(self, seconds: float) -> dict[str, float]:
        """Means by name, and the pictures per second; `seconds` is the training time so far. All processes call it."""
        mean = self.processes.mean(torch.stack(self.sums).mean(0))
        steps = len(self.sums) / self.config.accumulation
        took = seconds - self.since
        self.sums, self.since = [], seconds
        means = dict(zip(self.names, mean.tolist(), strict=True))
        return means | {
            "pictures_per_second": steps * self.config.batch_size / took if took > 0 else 0.0,
            "seconds": round(seconds, 3),
        }
