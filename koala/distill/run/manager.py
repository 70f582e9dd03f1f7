"""Runs as processes of their own: start, stop, resume, delete and list them by their folders.

A run does not need the app that started it: the app may quit and come back, and finds it by the process in its status.
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
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from koala import process
from koala.distill.config import DistillConfig
from koala.distill.run.folder import RunFolder, check_place
from koala.distill.run.intact import config_of
from koala.distill.run.records import ENDED, Status
from koala.errors import UserError
from koala.process import environment, last_words

INTERRUPTED = "interrupted"  # never written by a run: its process is gone and gave no reason
_COMMAND = (sys.executable, "-u", "-m", "koala", "distill")
_PATIENCE = 180  # s for an estimate
_LAST_WORD = 2  # s from a process's end to its status
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def runs_root() -> Path:
    """Folder of all runs: $KOALA_RUNS, or runs/ in the working directory."""
    return Path(os.environ.get("KOALA_RUNS") or "runs").absolute()


def list_runs(root: Path) -> list[RunFolder]:
    """Every run of a folder, the newest first: what has a config or checkpoints, readable or not."""
    paths = {file.parent for name in ("config.json", "checkpoints") for file in root.glob(f"[!.]*/{name}")}
    return [RunFolder(path=path) for path in sorted(paths, key=_age)]


def _age(path: Path) -> tuple[int, str]:
    try:
        return -(path / "config.json").stat().st_mtime_ns, path.name
    except OSError:  # none, or the run was just deleted
        return 0, path.name


def alive(run: RunFolder) -> bool:
    """Whether the process that the status names still runs; a later process of its number is not it.

    UserError where status.json is damaged.
    """
    status = run.status()
    if status is None or status.state in ENDED or not status.pid:
        return False
    if process.runs(status.pid, status.pid_started):
        return True
    for waiter in threading.enumerate():  # one that this process began: its last word comes within moments
        if waiter.name == _waiter(run):
            waiter.join(timeout=_LAST_WORD)
    return False


def held(run: RunFolder, patience: float = 0) -> bool:
    """Whether a trainer works in the folder, for `patience` seconds at least, whatever status.json says."""
    if not run.lock_file.exists():
        return False
    try:
        with FileLock(run.lock_file, timeout=patience):
            return False
    except Timeout:
        return True


def state(run: RunFolder) -> Status:
    """The true status: a run whose process is gone without a last status is `interrupted`.

    UserError where status.json or config.json is damaged.
    """
    status = run.status() or Status(state="preparing", step=0, num_steps=run.config().num_steps)
    if status.state in ENDED or alive(run):
        return status
    status = run.status() or status  # it may have ended since
    if status.state in ENDED:
        return status
    saved = run.checkpoints()
    last = f"its last checkpoint is of step {saved[-1]}" if saved else "it had no checkpoint yet"
    return dataclasses.replace(
        status,
        state=INTERRUPTED,
        message=f"its process was killed or the machine went down; {last}",
        steps_per_second=None,
        seconds_left=None,
    )


def new_name(root: Path, stem: str) -> str:
    """A name that no run has: the stem with a number behind it."""
    stem = re.sub(r"[^A-Za-z0-9.]+", "-", stem).strip("-.")[:48] or "run"
    names = {path.name for path in root.iterdir()} if root.is_dir() else set()
    return next(name for k in range(1, len(names) + 2) if (name := f"{stem}-{k}") not in names)


def start(config: DistillConfig, name: str, root: Path | None = None) -> RunFolder:
    """Begin a run in a process of its own and return at once; what it prints goes to log.txt in its folder."""
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is not a name for a run; take letters, digits, dots and dashes, for example first-1")
    run = RunFolder(path=(root or runs_root()) / name)
    if run.path.exists():
        remedy = f"choose another name, for example {new_name(root or runs_root(), name)}"
        if _works(run) or run.checkpoints():
            raise UserError(f"there is a run {name!r} already; {remedy}")
        try:
            check_place(run)  # of one without checkpoints the name may be used again
        except UserError as error:
            raise UserError(f"{run.path} is not a run that can be started again; {remedy}") from error
    run.path.mkdir(parents=True, exist_ok=True)
    run.write_config(config)
    _launch(run)
    return run


def resume(run: RunFolder, step: int | None = None) -> None:
    """Resume from the last checkpoint, or from that of `step`; a run without checkpoints starts over."""
    if _works(run):
        raise UserError(f"{run.name} is running already")
    if step is not None:
        run.check_checkpoint(step)
    _launch(run, *(["--step", str(step)] if step is not None else []))


def stop(run: RunFolder) -> None:
    """Ask a run to save and end; it does so after the step that it is in."""
    if not alive(run):
        raise UserError(f"{run.name} is not running")
    status = run.status()
    run.ask_to_stop(status)
    if os.name == "posix":  # elsewhere the signal ends a process at once, unsaved; here it ends one that only begins
        os.kill(status.pid, signal.SIGTERM)


def delete(run: RunFolder) -> None:
    """Remove a run that has ended, with everything that it wrote."""
    if _works(run):
        raise UserError(f"{run.name} is running; stop it first")
    gone = run.path.with_name(f".deleted-{run.name}-{os.getpid()}")
    run.path.rename(gone)  # at once, so that a half-removed run is none
    shutil.rmtree(gone)


def _works(run: RunFolder) -> bool:
    """Whether the run is being trained: by its status or, where that is damaged or another run's, by its lock."""
    with suppress(UserError):
        if alive(run):
            return True
    return held(run, patience=1)  # one that ended lets go right after its last word


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
            raise UserError(f"one step of this run takes longer than {_PATIENCE} s on this machine") from error
    if done.returncode:
        raise UserError(last_words(done.stderr, "koala"))
    return json.loads(done.stdout)


def _launch(run: RunFolder, *arguments: str) -> None:
    config, _ = config_of(run)
    with (run.path / "log.txt").open("a") as log:
        child = subprocess.Popen(
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
            num_steps=config.num_steps,
            message="starting",
            pid=child.pid,
            pid_started=process.started(child.pid),
            started=now,
            updated=now,
        )
    )
    threading.Thread(target=_await, args=(run, child), name=_waiter(run), daemon=True).start()


def _waiter(run: RunFolder) -> str:
    """The thread that awaits a run's process, by name."""
    return f"koala-run-{run.path}"


def _await(run: RunFolder, child: subprocess.Popen) -> None:
    """The last word of a process that ended before it could write its own."""
    code = child.wait()
    try:
        status = run.status()
    except UserError:  # whoever reads it gets the error
        return
    if status is None or status.pid != child.pid or status.state in ENDED or code == 0:
        return
    if code == -signal.SIGTERM:
        ended, message = "stopped", "stopped before it had begun"
    elif code > 0:
        ended, message = "failed", last_words((run.path / "log.txt").read_text(errors="replace"), "koala")
    else:
        return  # killed: `state` tells
    run.write_status(dataclasses.replace(status, state=ended, message=message, updated=time.time()))
