"""The judge's cost: prompts that name many things, pictures that show many things."""

import itertools
import json
import multiprocessing
import os
import random
import shutil
import sys
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from PIL import Image, ImageDraw

from koala.cli.main import main
from koala.distill.config import DistillConfig
from koala.distill.run.folder import RunFolder
from koala.files.outputs import new_file
from koala.shapes.captions import parse
from koala.shapes.judge import check, no_verdict, read
from koala.shapes.scene import COLOURS, SHAPES
from recipes.measure import damage
from recipes.measure.foreign_pages import (
    ANSWERS,
    ATTACK,
    REBOUND,
    foreign_site,
    framed,
    rebinding_browser,
    start_of_a_distillation,
)
from recipes.measure.reliability.running import Trial, served

MOST_CPU = 0.1  # s of one verdict
MOST_READING = 10  # s of CPU of the largest picture
SIDE = 2048  # px: the largest picture of a request
PROMPTS = {
    "forty circles in a row": " left of ".join(["a circle"] * 40),
    "two thousand characters of stars": (" above ".join(["a star"] * 150))[:2000],
    "every colour and shape": ", ".join(f"a {c} {s}" for c, s in itertools.product(COLOURS, SHAPES))[:2000],
    "three circles": "a circle left of a circle left of a circle",
}
BLOBS = (1, 10, 40, 400, 4000)


def blobs(count: int) -> Image.Image:
    """A picture with `count` discs of all colours on a grid."""
    picture = Image.new("RGB", (SIDE, SIDE), "white")
    draw, across = ImageDraw.Draw(picture), int(count**0.5 + 0.999)
    step = SIDE / across
    radius, colours = min(step * 0.35, 48), list(COLOURS.values())
    for k in range(count):
        y, x = divmod(k, across)
        middle = ((x + 0.5) * step, (y + 0.5) * step)
        box = [middle[0] - radius, middle[1] - radius, middle[0] + radius, middle[1] + radius]
        draw.ellipse(box, fill=colours[k % len(colours)])
    return picture


def cost() -> Trial:
    """CPU seconds of every prompt on every picture, whose reading is measured apart."""
    failures, tried, slowest, refused, reading = [], 0, 0.0, set(), {}
    for count in BLOBS:
        picture = blobs(count)
        begun = time.process_time()
        seen = read(picture)
        reading[f"{count} blobs"] = round(time.process_time() - begun, 2)
        for name, prompt in PROMPTS.items():
            begun = time.process_time()
            if no_verdict(prompt):
                refused.add(name)
            else:
                check(seen, parse(prompt))
            took = time.process_time() - begun
            slowest, tried = max(slowest, took), tried + 1
            if took > MOST_CPU:
                failures.append(f"{name} on {count} blobs: {took:.2f} s")
        if reading[f"{count} blobs"] > MOST_READING:
            failures.append(f"{count} blobs were read in {reading[f'{count} blobs']} s")
    return Trial(
        what=f"{len(PROMPTS)} prompts of up to 2,000 characters on each of {len(BLOBS)} pictures of {SIDE} px "
        f"with up to {BLOBS[-1]:,} blobs",
        tried=tried,
        survived=tried - len(failures),
        figures={
            "slowest verdict, CPU seconds": round(slowest, 4),
            "reading, CPU seconds": reading,
            "prompts without a verdict, and told why": len(refused),
        },
        failures=tuple(failures),
    )


# --- A distillation that is killed again and again, and one whose files lose a bit each: no weight may be lost

SMALL = dict(
    num_pictures=24, resolution=128, batch_size=2, learning_rate=1e-4, precision="fp32", teacher_precision="fp32",
    ema_decay=0.99, validation_pictures=2, validate_every=0, log_every=1, threads=1,
)  # fmt: skip
SEED = 20261128  # of the moments and the bits, so that a failure can be tried again


def config(folder: Path, **settings) -> Path:
    """The file of a small run's config; all of them share a cache."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / "config.json"
    config = DistillConfig(**SMALL, cache=str(folder / "cache"), **settings)
    with new_file(file) as partial:
        partial.write_text(json.dumps(config.to_dict()))
    return file


def _distil(output: str, arguments: tuple[str, ...]) -> None:
    with open(output, "a") as file:
        for stream in (sys.stdout, sys.stderr):
            os.dup2(file.fileno(), stream.fileno())
    sys.exit(main(["distill", *arguments]))


def killed(folder: Path, kills: int = 20) -> Trial:
    """kill -9 at random moments; the end is compared with an unbroken run, bit by bit, and so are the metrics."""
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
    """One bit of one file of a run is flipped; the run goes on, or is refused with a remedy that works."""
    settings = str(config(folder, num_steps=4, checkpoint_every=2))
    run, whole = (RunFolder(path=folder / name) for name in ("run", "whole"))
    for out, steps in ((run, 4), (whole, 6)):
        code, output = damage.distill("--config", settings, f"num_steps={steps}", "--out", str(out.path))
        if code:
            raise RuntimeError(output)
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
        failures=tuple(f"{o.file}, bit {o.bit}: {o.ended}: {o.output.strip()[-300:]}" for o in lost),
    )


# --- Pages of other sites against an app on one's own machine, in Chromium: none may read, drive, fill or frame it

ATTACKERS = {  # where a foreign page lives -> the names by which it calls the app
    "localhost": ("127.0.0.1", "localhost", "x.localhost"),
    "127.0.0.1": ("localhost", "localhost.", "[::1]"),
    REBOUND: ("127.0.0.1", "localhost.", REBOUND),
}
OTHER_NAMES = ("x.localhost", "localhost.", REBOUND)  # by which nobody may open the page itself


def cross_site(folder: Path) -> Trial:
    """Requests, uploads and frames of foreign pages, and the page by names that others may have given this machine."""
    chromium = shutil.which("chromium")
    if not chromium:
        raise RuntimeError("no Chromium found; install one with: sudo apt-get install chromium")
    tried, failures = 0, []
    with served(folder, host="127.0.0.1") as app, foreign_site() as site, rebinding_browser(chromium) as browser:
        port, start = app.url.rstrip("/").rpartition(":")[2], start_of_a_distillation(app.url)
        for home, names in ATTACKERS.items():
            page = browser.new_page()
            page.goto(f"http://{home}:{site}/")
            for name in names:
                answers = page.evaluate(ATTACK, [f"http://{name}:{port}/", start])
                tried += len(answers) + 1
                failures += [f"{home} -> {name}: {what}: {a}" for what, a in answers.items() if a not in ANSWERS]
            failures += [f"{home}: a frame shows the app" for shown in framed(page) if shown]
            page.close()
        for name in OTHER_NAMES:
            page = browser.new_page()
            answer = page.goto(f"http://{name}:{port}/")
            tried += 1
            if answer is None or answer.status != 403:
                failures.append(f"the page opens as {name}")
            page.close()
        runs = [path.name for path in (folder / "runs").glob("*")]
        planted = list((folder / "files").rglob("planted.png"))
        page = browser.new_page()
        page.goto(app.url)
        page.wait_for_selector("#k-prompt")
        own = page.evaluate("async () => (await fetch('config')).status")
        page.close()
    if own != 200:
        failures.append(f"the app's own page was answered {own}")
    return Trial(
        what="requests, uploads and frames of pages of other sites, in Chromium, and the page by foreign names",
        tried=tried,
        survived=tried - len(failures),
        figures={"distillations begun": len(runs), "files planted": len(planted)},
        failures=(*failures, *(f"run {r}" for r in runs), *(json.dumps(str(f.name)) for f in planted)),
    )
