"""An export, or a check of one, as a process of its own. It writes its progress to stderr, one JSON object per line."""

import json
import os
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

from koala.files.outputs import remove_partial
from koala.process import environment, last_words

RUNNING, STOPPING, DONE, FAILED, STOPPED = "running", "stopping", "done", "failed", "stopped"
COMMAND = (sys.executable, "-u", "-m", "koala.export")
LOG_LINES = 60
PATIENCE = 20  # s from Stop until the process is killed


def within(root: Path, text: str) -> str:
    """A message with paths relative to the folder of exports, so that strangers do not see this machine's."""
    return text.replace(f"{root}{os.sep}", "")


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step of the export, and when it began."""

    text: str
    begun: float


@dataclass(kw_only=True)
class Job:
    """One process, as far as it has reported. It ends as done, failed or stopped."""

    title: str
    folder: Path  # that it writes or checks
    checks: bool = False  # an existing export
    visitor: str = ""
    state: str = RUNNING
    message: str = ""
    share: float = 0.0  # done, of the export without its gates
    left: float | None = None  # s, as the export estimates
    steps: list[Step] = field(default_factory=list)
    findings: list[dict] = field(default_factory=list)  # of the gates: gate, passed, text, figures
    error: str = ""  # why it failed, as the process wrote it
    log: deque[str] = field(default_factory=lambda: deque(maxlen=LOG_LINES))
    begun: float = field(default_factory=time.time)
    ended: float | None = None

    @property
    def alive(self) -> bool:
        """Whether its process has not ended yet; one that was asked to stop is alive until it ends."""
        return self.state in (RUNNING, STOPPING)

    def hear(self, line: str) -> None:
        """Read a line of the process's stderr: a report as JSON, or a library's output, which goes to the log."""
        match _object(line):
            case {"kind": "estimate", "text": str(text)}:
                self.message = text
            case {"kind": "lora", "text": str(text)}:
                self.steps.append(Step(text=text, begun=time.time()))
            case {"kind": "progress", "stage": str(text), "share": float() | int() as share, "left_s": left}:
                self.share, self.left = share, left
                self.steps.append(Step(text=text, begun=time.time()))
            case {
                "kind": "finding",
                "gate": str(),
                "passed": bool() | None,
                "text": str(),
                "figures": dict(),
            } as finding:
                self.share, self.left = 1.0, None
                self.findings.append({name: finding[name] for name in ("gate", "passed", "text", "figures")})
            case {"kind": "error", "text": str(text)}:
                self.error = text
                self.log.append(text)
            case _:
                self.log.append(line.rstrip())

    def end(self, code: int, output: str) -> None:
        """Take note that the process has ended; `output` is its JSON, complete or not."""
        self.findings = _object(output).get("findings", self.findings)
        bad = next((f for f in self.findings if f["passed"] is False), None)
        if code == 0:
            self.message, state = "it passed every gate that was run", DONE
        elif self.state == STOPPING:
            self.message, state = "stopped; nothing was written", STOPPED
        elif bad:
            outcome = "the files are unchanged" if self.checks else "nothing was written"
            self.message, state = f"it failed the gate {bad['gate']!r}, and {outcome}: {bad['text']}", FAILED
        elif code < 0:
            self.message = (
                "its process was killed, most often for lack of memory; close other programs, or export the U-Net alone"
            )
            state = FAILED
        else:
            words = self.error or last_words("\n".join(self.log), "export")
            self.message, state = within(self.folder.parent, words), FAILED
        self.ended = time.time()
        self.state = state


def _object(text: str) -> dict:
    """The JSON object that the text is; empty for any other text."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


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
            start_new_session=True,  # so that Ctrl+C in the app's terminal does not reach the export
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
        """Ask it to end after its current step; after PATIENCE seconds it is killed."""
        self.job.state = STOPPING
        self._process.terminate()
        force = threading.Timer(PATIENCE, self._process.kill)
        force.daemon = True
        force.start()

    def wait(self, timeout: float | None = None) -> None:
        """Wait until the job has ended and all of its output is read."""
        self._listener.join(timeout)
