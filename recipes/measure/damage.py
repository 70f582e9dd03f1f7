"""Damage done to a run on purpose, by one flipped bit or by kill -9, and what becomes of the run.

For the tests and for the recipe of docs/reliability.md. Everything works on a copy of the run.
"""

import contextlib
import io
import random
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch
from safetensors.torch import load_file

from koala.cli.main import main
from koala.distill.run.folder import RunFolder
from koala.distill.run.records import ENDED
from koala.errors import UserError

TENSORS = ("student", "ema", "optimizer")
_REMEDIES = (  # in a refusal -> what to type
    (re.compile(r"resume with (--step) (\d+)"), lambda run, m: ["--resume", str(run.path), m[1], m[2]]),
    (re.compile(r"add (\w+=\S+), or"), lambda run, m: ["--resume", str(run.path), m[1].strip("'")]),
    (
        re.compile(r"--out NEW --config (\S+) (student_init=\S+)"),
        lambda run, m: ["--out", f"{run.path}-new", "--config", m[1], m[2]],
    ),
)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a damaged run. It was remedied where it was refused, and what the refusal says to type worked."""

    file: str  # in the run's folder
    bit: int
    ended: str  # went on, remedied, refused or crashed
    output: str  # on stderr, the first try's
    same: bool | None  # whether its last checkpoint has the weights that an undamaged run has; None without one

    @property
    def survived(self) -> bool:
        """Nothing was lost: it went on, or was refused in one sentence whose remedy works."""
        return self.ended in ("went on", "remedied") and self.same is not False


def positions(run: RunFolder, per_file: int, rng: random.Random) -> list[tuple[str, int]]:
    """Random bits of every file of a run: (path in its folder, bit)."""
    files = sorted(p for p in run.path.rglob("*") if p.is_file() and p.stat().st_size)
    return [
        (str(file.relative_to(run.path)), rng.randrange(8 * file.stat().st_size))
        for file in files
        for _ in range(per_file)
    ]


def flip(file: Path, bit: int) -> None:
    """Turn one bit of a file over, where it is."""
    with file.open("r+b") as opened:
        opened.seek(bit // 8)
        (byte,) = opened.read(1)
        opened.seek(bit // 8)
        opened.write(bytes([byte ^ 1 << bit % 8]))


def distill(*arguments: str) -> tuple[int | None, str]:
    """`koala distill` in this process: its exit status, None where it raised, and what it said on stderr."""
    output = io.StringIO()
    with contextlib.redirect_stderr(output), contextlib.redirect_stdout(io.StringIO()):
        try:
            return main(["distill", *arguments]), output.getvalue()
        except Exception as error:  # what no command may do
            return None, f"{output.getvalue()}{type(error).__name__}: {error}"


def tensors(run: RunFolder, step: int) -> dict[str, torch.Tensor]:
    """Everything that a checkpoint holds."""
    files = {name: load_file(run.checkpoint(step) / f"{name}.safetensors") for name in TENSORS}
    return {f"{name}/{key}": value for name, values in files.items() for key, value in values.items()}


def same(one: RunFolder, other: RunFolder, step: int) -> bool:
    """Whether two runs have the same bits at this step."""
    tensors_of_one, tensors_of_other = tensors(one, step), tensors(other, step)
    return tensors_of_one.keys() == tensors_of_other.keys() and all(
        torch.equal(value, tensors_of_other[name]) for name, value in tensors_of_one.items()
    )


def flip_and_resume(run: RunFolder, file: str, bit: int, whole: RunFolder, scratch: Path) -> Outcome:
    """Flip a bit in a copy of a run, and go on as far as `whole` went, which is the same run undamaged."""
    last = whole.checkpoints()[-1]
    copy = RunFolder(path=scratch / "flipped")
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(scratch)
    shutil.copytree(run.path, copy.path)
    flip(copy.path / file, bit)
    steps = f"num_steps={last}"
    code, output = distill("--resume", str(copy.path), steps)
    ended, compared = ("went on", True) if code == 0 else ("refused" if code == 2 else "crashed", True)
    if code == 2:
        for pattern, typed in _REMEDIES:
            if match := pattern.search(output):
                arguments = typed(copy, match)
                code, _ = distill(*arguments, steps)
                ended = "remedied" if code == 0 else ended
                compared = arguments[0] == "--resume"  # a new run draws on from the student alone
                break
    equal = same(copy, whole, last) if code == 0 and compared else None
    shutil.rmtree(scratch)
    return Outcome(file=file, bit=bit, ended=ended, output=output, same=equal)


def kill_and_resume(
    start: Callable[..., BaseProcess],
    first: Sequence[str],
    run: RunFolder,
    kills: int,
    rng: random.Random,
    longest: float = 1.0,
) -> Iterator[int]:
    """Begin a run with the arguments `first`, kill -9 it `kills` times at random moments, each time resume it, and let
    it end. Yields the step of the last checkpoint after each kill. `start` runs `koala distill` as a process.

    RuntimeError where it ended before it was killed, or failed.
    """
    arguments = list(first)
    for _ in range(kills):
        process = start(*arguments)
        _wait_until_running(run, process)
        time.sleep(rng.uniform(0, longest))
        process.kill()
        process.join(60)
        if process.exitcode != -signal.SIGKILL:
            raise RuntimeError(f"the run ended by itself, with {process.exitcode}; it needs more steps to be killed in")
        yield next(reversed(run.checkpoints()), 0)
        arguments = ["--resume", str(run.path)]
    process = start(*arguments)
    process.join(600)
    if process.exitcode != 0:
        raise RuntimeError(f"after {kills} kills the run ended with {process.exitcode}")


def _wait_until_running(run: RunFolder, process: BaseProcess) -> None:
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline and process.is_alive():
        with contextlib.suppress(UserError):
            status = run.status()
            if status and status.pid == process.pid and status.state in ("running", *ENDED):
                return
        time.sleep(0.02)
    raise RuntimeError(f"the run did not begin; its process ended with {process.exitcode}")
