"""Runs as processes of their own: started, stopped, resumed, deleted and listed by whoever sees their folders.

A run needs nobody: the app that started it may end and come back, and finds it by the process that its status names.
"""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from koala.child import environment, last_words
from koala.distill.config import DistillConfig
from koala.distill.run_folder import ENDED, RunFolder, Status, process_started
from koala.request import RequestError

INTERRUPTED = "interrupted"  # what no run writes itself: its process is gone and has not said why
_COMMAND = (sys.executable, "-u", "-m", "koala", "distill")
_PATIENCE = 180  # s for an estimate
_LAST_WORD = 2  # s from a process's end to its status
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def runs_root() -> Path:
    """Where runs lie: $KOALA_RUNS, else runs/ in the folder in which one works."""
    return Path(os.environ.get("KOALA_RUNS") or "runs").absolute()


def list_runs(root: Path) -> list[RunFolder]:
    """Every run of a folder, the newest first."""
    configs = sorted(root.glob("[!.]*/config.json"), key=lambda f: f.stat().st_mtime_ns, reverse=True)
    return [RunFolder(path=file.parent) for file in configs]


def alive(run: RunFolder) -> bool:
    """Whether the process that the status names still runs; a later process of its number is not it."""
    status = run.status()
    if status is None or status.state in ENDED or not status.pid:
        return False
    if process_started(status.pid) == status.pid_started and _runs(status.pid):
        return True
    for waiter in threading.enumerate():  # one that this process began: its last word comes within moments
        if waiter.name == _waiter(run):
            waiter.join(timeout=_LAST_WORD)
    return False


def _runs(pid: int) -> bool:
    """Whether a process of this number runs; one that has ended, and whose parent has not asked how, does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:  # a system without /proc
        return True
    except OSError:
        return False


def state(run: RunFolder) -> Status:
    """The status, told truly: a run whose process is gone without a word is `interrupted`."""
    status = run.status() or Status(state="preparing", step=0, num_steps=run.config().num_steps)
    if status.state in ENDED or alive(run):
        return status
    status = run.status() or status  # it may have ended since
    if status.state in ENDED:
        return status
    saved = run.checkpoints()
    kept = f"its last checkpoint is of step {saved[-1]}" if saved else "it had no checkpoint yet"
    return dataclasses.replace(
        status,
        state=INTERRUPTED,
        message=f"its process was killed or the machine went down; {kept}",
        steps_per_second=None,
        seconds_left=None,
    )


def new_name(root: Path, stem: str) -> str:
    """A name that no run has: the stem with a number behind it."""
    stem = re.sub(r"[^A-Za-z0-9.]+", "-", stem).strip("-.")[:48] or "run"
    taken = {run.name for run in list_runs(root)}
    return next(name for k in range(1, len(taken) + 2) if (name := f"{stem}-{k}") not in taken)


def start(config: DistillConfig, name: str, root: Path | None = None) -> RunFolder:
    """Begin a run in a process of its own and return at once; what it prints goes to log.txt in its folder."""
    if not _NAME.fullmatch(name):
        raise RequestError(f"{name!r} is no name for a run; take letters, digits, dots and dashes, for example first-1")
    run = RunFolder(path=(root or runs_root()) / name)
    try:
        run.path.mkdir(parents=True)
    except FileExistsError as error:
        raise RequestError(f"there is a run {name!r} already; choose another name") from error
    run.write_config(config)
    _launch(run)
    return run


def resume(run: RunFolder, step: int | None = None) -> None:
    """Go on from the last checkpoint, or from that of `step`; a run that had none begins again."""
    if alive(run):
        raise RequestError(f"{run.name} is running already")
    if step is not None:
        run.check_checkpoint(step)
    _launch(run, *(["--step", str(step)] if step is not None else []))


def stop(run: RunFolder) -> None:
    """Ask a run to save and end; it does so after the step that it is in."""
    if not alive(run):
        raise RequestError(f"{run.name} is not running")
    os.kill(run.status().pid, signal.SIGTERM)


def delete(run: RunFolder) -> None:
    """Remove a run that has ended, with all that it wrote."""
    if alive(run):
        raise RequestError(f"{run.name} is running; stop it first")
    gone = run.path.with_name(f".deleted-{run.name}-{os.getpid()}")
    run.path.rename(gone)  # at once, so that a half-removed run is none
    shutil.rmtree(gone)


def estimate(config: DistillConfig) -> dict:
    """What a run would take on this machine, as JSON of an Estimate; measured for some seconds by another process."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "config.json"
        file.write_text(json.dumps(config.to_dict()))
        command = [*_COMMAND, "--estimate", "--json", "--config", str(file)]
        try:
            done = subprocess.run(
                command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment(), timeout=_PATIENCE
            )
        except subprocess.TimeoutExpired as error:
            raise RequestError(f"one step of this run is longer than {_PATIENCE} s on this machine") from error
    if done.returncode:
        raise RequestError(last_words(done.stderr, "koala"))
    return json.loads(done.stdout)


def _launch(run: RunFolder, *arguments: str) -> None:
    with (run.path / "log.txt").open("a") as log:
        process = subprocess.Popen(
            [*_COMMAND, "--resume", str(run.path), *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment(),
            start_new_session=True,  # Ctrl+C in the app's terminal is not for the run
        )
    now, before = time.time(), run.checkpoints()
    run.write_status(
        Status(
            state="preparing",
            step=before[-1] if before else 0,
            num_steps=run.config().num_steps,
            message="starting",
            pid=process.pid,
            pid_started=process_started(process.pid),
            started=now,
            updated=now,
        )
    )
    threading.Thread(target=_await, args=(run, process), name=_waiter(run), daemon=True).start()


def _waiter(run: RunFolder) -> str:
    """The thread that awaits a run's process, by name."""
    return f"koala-run-{run.path}"


def _await(run: RunFolder, process: subprocess.Popen) -> None:
    """The last word of a process that ended before it could write its own."""
    code = process.wait()
    status = run.status()
    if status is None or status.pid != process.pid or status.state in ENDED or code == 0:
        return
    if code == -signal.SIGTERM:
        ended, message = "stopped", "stopped before it had begun"
    elif code > 0:
        ended, message = "failed", last_words((run.path / "log.txt").read_text(errors="replace"), "koala")
    else:
        return  # killed: `state` tells
    run.write_status(dataclasses.replace(status, state=ended, message=message, updated=time.time()))
