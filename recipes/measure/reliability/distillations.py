"""A distillation that is killed again and again, and one whose files lose a bit each: no weight may be lost."""

import json
import multiprocessing
import os
import random
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

from koala.cli.main import main
from koala.distill.config import DistillConfig
from koala.distill.run.folder import RunFolder
from koala.files.outputs import new_file
from recipes.measure import damage
from recipes.measure.reliability.trial import Trial

SMALL = dict(
    num_pictures=24, resolution=128, batch_size=2, learning_rate=1e-4, precision="fp32", teacher_precision="fp32",
    ema_decay=0.99, validation_pictures=2, validate_every=0, log_every=1, threads=1,
)  # fmt: skip
SEED = 20261128  # of the moments and the bits, so that a failure can be tried again


def config(folder: Path, **settings) -> Path:
    """The file of a small run's config; all of them share a cache."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.json"
    found = DistillConfig(**SMALL, cache=str(folder / "cache"), **settings)
    with new_file(file) as partial:
        partial.write_text(json.dumps(found.to_dict()))
    return file


def _distil(said: str, arguments: tuple[str, ...]) -> None:
    with open(said, "a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    sys.exit(main(["distill", *arguments]))


def killed(folder: Path, kills: int = 20) -> Trial:
    """kill -9 at random moments; the end is held against an unbroken run, bit by bit, and so are the metrics."""
    forks = multiprocessing.get_context("forkserver")
    forks.set_forkserver_preload(["koala.distill.trainer"])
    steps = 30 * kills  # enough that a fast machine is not done before the last kill

    def start(*arguments: str) -> BaseProcess:
        process = forks.Process(target=_distil, args=(str(folder / "said.txt"), arguments), daemon=True)
        process.start()
        return process

    settings = str(config(folder, num_steps=steps, checkpoint_every=3))
    whole, broken = (RunFolder(path=folder / name) for name in ("whole", "broken"))
    unbroken = start("--config", settings, "--out", str(whole.path))
    unbroken.join(600)
    if unbroken.exitcode != 0:
        raise RuntimeError((folder / "said.txt").read_text())
    failures, reached = [], []
    try:
        arguments = ("--config", settings, "--out", str(broken.path))
        for step in damage.kill_and_resume(start, arguments, broken, kills, random.Random(SEED), longest=3):
            reached.append(step)
        if not damage.same(broken, whole, steps):
            failures.append("the weights differ from those of the unbroken run")
        lines = [entry["step"] for entry in broken.metrics() if entry["kind"] == "train"]
        if lines != list(range(1, steps + 1)):
            failures.append("lines of metrics.jsonl are lost or there twice")
    except RuntimeError as error:
        failures.append(str(error))
    return Trial(
        what=f"kill -9 at {kills} random moments of a distillation of {steps} steps, each time resumed",
        tried=kills,
        survived=len(reached) if not failures else 0,
        figures={"bits of weights that differ at the end": 0 if not failures else "some", "saved at": reached},
        failures=tuple(failures),
    )


def flipped(folder: Path, per_file: int = 2) -> Trial:
    """One bit of one file of a run is turned over; the run goes on, or is refused with a remedy that works."""
    settings = str(config(folder, num_steps=4, checkpoint_every=2))
    run, whole = (RunFolder(path=folder / name) for name in ("run", "whole"))
    for out, steps in ((run, 4), (whole, 6)):
        code, said = damage.distill("--config", settings, f"num_steps={steps}", "--out", str(out.path))
        if code:
            raise RuntimeError(said)
    rng, outcomes = random.Random(SEED), []
    for file, bit in damage.positions(run, per_file, rng):
        outcomes.append(damage.flip_and_resume(run, file, bit, whole, folder / "scratch"))
    lost = [outcome for outcome in outcomes if not outcome.survived]
    ended = {name: sum(o.ended == name for o in outcomes) for name in ("went on", "remedied", "refused", "crashed")}
    return Trial(
        what=f"{per_file} single bits turned over in every file of a run, one at a time, then resumed",
        tried=len(outcomes),
        survived=len(outcomes) - len(lost),
        figures={"files": len({o.file for o in outcomes})} | ended,
        failures=tuple(f"{o.file}, bit {o.bit}: {o.ended}: {o.said.strip()[-300:]}" for o in lost),
    )
