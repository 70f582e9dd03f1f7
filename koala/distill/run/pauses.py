"""Between two pieces of a run's work: it waits while the app draws with the same cores, or is asked to stop."""

import math
import os
import time

from koala import process
from koala.distill.processes import Processes
from koala.distill.run.folder import RunFolder
from koala.distill.run.reporter import Reporter
from koala.distill.run.stopping import Interrupted, Stopped, StopSignal
from koala.distill.run.turns import give_way

_LOOKS = 0.05  # seconds between two looks at whether the app draws, where a million files are gone through


class Pauses:
    """Those of one process of a run; all processes stop together."""

    def __init__(self, run: RunFolder, reporter: Reporter, processes: Processes, minutes: float):
        self.run, self.reporter, self.processes = run, reporter, processes
        pid, began = os.getpid(), process.started(os.getpid())
        alone = processes.number == 1
        self.asked = StopSignal(
            minutes, word=lambda: run.is_asked_to_stop(pid, began) or not alone and run.is_given_up(), alone=alone
        )
        self._looked = -math.inf

    def all_stop(self) -> bool:
        """Whether any process was asked to stop; every process asks."""
        return self.processes.any(self.asked())

    def may_stop(self, when: str) -> None:
        """Raises Stopped in all processes if one was asked to stop; every process asks."""
        if self.all_stop():
            raise self.stopped(when)

    def stopped(self, when: str) -> Stopped:
        """The run's end, in words."""
        return Stopped(f"{self.asked.reason or 'stopped'} {when}")

    def stops_or_waits(self) -> bool:
        """Between two files that are looked at, and two pictures that are encoded: whether this process is to stop."""
        if time.monotonic() - self._looked > _LOOKS:
            self.give_way()
            self._looked = time.monotonic()
        return self.asked()

    def between(self) -> None:
        """Between two pieces of a validation; Interrupted where this process is to stop."""
        self.give_way()
        if self.asked():
            raise Interrupted(self.asked.reason)

    def give_way(self) -> None:
        """Wait while the app draws with the same cores."""
        if not self.processes.main or self.processes.device.type != "cpu":
            return
        before = self.reporter.status
        give_way(self.run.path.parent, self.asked, self.reporter.waits)
        if self.reporter.status is not before:
            self.reporter.say(before.state, before.message)
