"""An export, or the check of one, as a process of its own. What it says on stderr is its progress, line by line."""

import json
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from koala.child import environment, last_words
from koala.outputs import remove_partial

RUNNING, STOPPING, DONE, FAILED, STOPPED = "running", "stopping", "done", "failed", "stopped"
COMMAND = (sys.executable, "-u", "-m", "export")
LOG_LINES = 60
PATIENCE = 20  # s from the wish to stop to the end by force
_PROGRESS = re.compile(r" *(\d+)%  (.+?)(?:, about (.+) left)?")
_FINDING = re.compile(r"(pass|FAIL|skip)  (\S+) +(.+)")
_ESTIMATE = re.compile(r"\S.* (will take about .+)")


def within(root: Path, text: str) -> str:
    """A message whose paths begin at the folder of exports: strangers need not know this machine's."""
    return text.replace(f"{root}{os.sep}", "")


@dataclass(frozen=True, kw_only=True)
class Step:
    """Something that the export did or does, and when it began."""

    text: str
    begun: float


@dataclass(kw_only=True)
class Job:
    """One process, as far as it has told. It ends as done, failed or stopped."""

    title: str
    folder: Path  # that it writes, or checks
    checks: bool = False  # an export that is there already
    visitor: str = ""
    state: str = RUNNING
    message: str = ""
    share: float = 0.0  # of the export that is done, gates not counted
    left: str = ""  # time, as the export says it
    steps: list[Step] = field(default_factory=list)
    findings: list[dict] = field(default_factory=list)  # of the gates: gate, passed, text, in the end also figures
    log: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_LINES))
    begun: float = field(default_factory=time.time)
    ended: float | None = None

    @property
    def alive(self) -> bool:
        """Whether its process has not ended yet; one that was asked to stop is still alive."""
        return self.state in (RUNNING, STOPPING)

    def hear(self, line: str) -> None:
        """One line of the process's stderr; what is neither progress nor a finding is kept for the log."""
        line = line.rstrip()
        self.log.append(line)
        if found := _PROGRESS.fullmatch(line):
            share, text, left = found.groups()
            self.share, self.left = int(share) / 100, left or ""
            self.steps.append(Step(text=text, begun=time.time()))
        elif found := _FINDING.fullmatch(line):
            word, gate, text = found.groups()
            self.share, self.left = 1.0, ""
            self.findings.append(
                {"gate": gate, "passed": {"pass": True, "FAIL": False, "skip": None}[word], "text": text}
            )
        elif found := _ESTIMATE.fullmatch(line):
            self.message = found[1]

    def end(self, code: int, said: str) -> None:
        """The process has ended: `said` is its JSON, if it had any."""
        told = json.loads(said) if said.strip() else {}
        self.findings = told.get("findings", self.findings)
        bad = next((f for f in self.findings if f["passed"] is False), None)
        if code == 0:
            self.message, state = "it passes every gate that was run", DONE
        elif self.state == STOPPING:
            self.message, state = "stopped; nothing was written", STOPPED
        elif bad:
            kept = "the files stay as they are" if self.checks else "nothing was written"
            self.message, state = f"it failed the gate {bad['gate']!r}, and {kept}: {bad['text']}", FAILED
        elif code < 0:
            self.message = "its process was killed, most often for want of memory; close other programs, or export less"
            state = FAILED
        else:
            self.message, state = within(self.folder.parent, last_words("\n".join(self.log), "export")), FAILED
        self.ended = time.time()
        self.state = state


class Process:
    """The process of a job, and the thread that listens to it."""

    def __init__(self, job: Job, arguments: Sequence[str]):
        self.job = job
        output = tempfile.TemporaryFile("w+")  # noqa: SIM115  (the listener closes it)
        self._process = subprocess.Popen(
            [*COMMAND, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            env=environment(),
            start_new_session=True,  # Ctrl+C in the app's terminal is not for the export
        )
        self._listener = threading.Thread(target=self._listen, args=(output,), name="koala-export", daemon=True)
        self._listener.start()

    def _listen(self, output: IO[str]) -> None:
        with output, self._process.stderr as lines:
            for line in lines:
                self.job.hear(line)
            code = self._process.wait()
            output.seek(0)
            if not self.job.checks:
                remove_partial(self.job.folder, self._process.pid)
            self.job.end(code, output.read())

    def stop(self) -> None:
        """Ask it to end, which takes as long as the step that it is in; after a while make it."""
        self.job.state = STOPPING
        self._process.terminate()
        force = threading.Timer(PATIENCE, self._process.kill)
        force.daemon = True
        force.start()

    def wait(self, timeout: float | None = None) -> None:
        """Until the job has ended and all is told."""
        self._listener.join(timeout)
