"""Every report in docs/measurements says which weights it was made with, and they are the shipped ones."""

import hashlib
import inspect
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from koala.evaluate.reports import circumstances
from koala.models import measured
from koala.models.cards import EMBEDDED
from recipes.measure.stamp import derived

ROOT = Path(__file__).parents[2]
REPORTS = sorted((ROOT / "docs" / "measurements").glob("*.json"))
SHIPPED = json.loads((EMBEDDED / "hashes.json").read_text())

# Reports without hashes, and why: an entry whose report has hashes is one too many.
EARLIER = "compares earlier weights, which led to the shipped ones, or stages of training that were never shipped"
NOTHING = "nothing in it depends on weights; the next one says so itself"
WITHOUT = {
    "distill-full-size-cpu.json": "random weights, as its teacher says; a test by hand wrote it and no recipe does",
    "embedded-after-mean.json": EARLIER,
    "embedded-ancestral-euler.json": EARLIER,
    "embedded-mean.json": EARLIER,
    "embedded-plain-euler.json": EARLIER,
    "embedded-relation.json": EARLIER,
    "embedded-training.json": EARLIER,
    "few-steps-trials.json": EARLIER,
    "fresh-clone.json": NOTHING,
    "versions.json": NOTHING,
}


def weights_of(report: object) -> Iterator[object]:
    """Every entry `weights` of a report, wherever it is."""
    for key, value in report.items() if isinstance(report, dict) else ():
        if key == "weights":
            yield value
        else:
            yield from weights_of(value)


def stale(weights: object) -> list[str]:
    """Files of shipped models whose hashes in a report are not those that are shipped."""
    if weights in (measured.RANDOM, measured.NONE):
        return []
    result = []
    for name, value in weights.items():
        model, _, part = name.partition("/")  # reliability's older reports have "model/part" -> hash of its one file
        own = SHIPPED.get(model, {})
        files = value if isinstance(value, dict) else {f: value for f in own if f.startswith(f"{part}/")}
        files = {f: sha256 for f, sha256 in files.items() if f.endswith(".safetensors")}
        result += [f"{model}/{f}" for f, sha256 in files.items() if own and own.get(f) != sha256]
    return result


@pytest.mark.parametrize("file", REPORTS, ids=lambda file: file.stem)
def test_a_report_says_its_weights_and_they_are_those_that_are_shipped(file):
    weights = list(weights_of(json.loads(file.read_text())))
    assert bool(weights) != (file.name in WITHOUT), f"{file.name}: {WITHOUT.get(file.name, 'says no weights')}"
    for one in weights:
        assert one, f"{file.name} says no weights"
        assert stale(one) == [], f"{file.name} is older than these weights: measure it again, by its own command"


@pytest.mark.parametrize("file", REPORTS, ids=lambda file: file.stem)
def test_a_reports_commands_name_no_path_of_the_machine_that_ran_them(file):
    lines = file.read_text().splitlines()
    assert [line for line in lines if "python -m " in line and re.search(r"[ =\"]/[a-z]+/", line)] == []


def test_a_report_of_other_weights_is_found():
    name = "unet/diffusion_pytorch_model.safetensors"
    now = SHIPPED["tiny-sdxl"][name]
    assert stale({"tiny-sdxl": {name: now}}) == stale({"tiny-sdxl/unet": now}) == []
    assert stale({"tiny-sdxl": {name: "0" * 64}}) == stale({"tiny-sdxl/unet": "0" * 64}) == [f"tiny-sdxl/{name}"]
    assert stale({"my-run": {name: "0" * 64}}) == []  # no model of ours


def test_whoever_measures_must_say_the_weights():
    assert inspect.signature(circumstances).parameters["weights"].default is inspect.Parameter.empty
    for file in ROOT.glob("recipes/**/*.py"):
        text = file.read_text()
        if "docs/measurements/" in text and "add_argument" in text and file.name not in ("screenshot.py", "stamp.py"):
            assert "weights=" in text or '"weights"' in text, f"{file} writes a report and no weights"


def test_the_hashes_are_those_of_the_files(embedded, tmp_path):
    files = sorted((embedded / "tiny-sdxl").glob("*/*.safetensors"))
    wanted = {f"{f.parent.name}/{f.name}": hashlib.sha256(f.read_bytes()).hexdigest() for f in files}
    assert measured.weights(["tiny-sdxl"]) == {"tiny-sdxl": wanted} and len(wanted) == 4
    unet = shutil.copytree(embedded / "tiny-sdxl" / "unet", tmp_path / "one" / "student")
    other = shutil.copytree(unet, tmp_path / "two" / "student")
    name = "diffusion_pytorch_model.safetensors"
    own = {name: wanted[f"unet/{name}"]}
    assert measured.weights([unet, other]) == {"student": own, "two/student": own}


# --- recipes.measure.stamp


@pytest.fixture
def repository(tmp_path) -> Path:
    """A repository with one model's weights, and a report that a later commit brought."""
    git(tmp_path, "init", "-q")
    weights = tmp_path / "models" / "mine" / "w.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"one")
    commit(tmp_path, "2026-01-01T12:00:00")
    report = {"date": "2026-01-02", "command": "measure", "ms": [1.5, 2.5, 3.5]}
    (tmp_path / "report.json").write_text(json.dumps(report))
    commit(tmp_path, "2026-01-02T12:00:00")
    return tmp_path


def git(root: Path, *arguments: str, date: str = "") -> None:
    who = ["-c", "user.name=x", "-c", "user.email=x@example.org"]
    when = {"GIT_COMMITTER_DATE": date, "GIT_AUTHOR_DATE": date} if date else {}
    subprocess.run(["git", *who, "-C", str(root), *arguments], check=True, env={"PATH": "/usr/bin:/bin", **when})


def commit(root: Path, date: str) -> None:
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "x", date=date)


def stamped(root: Path) -> str:
    sha256 = hashlib.sha256((root / "models" / "mine" / "w.safetensors").read_bytes()).hexdigest()
    return derived(root / "report.json", {"mine": {"w.safetensors": sha256}}, root / "models", root)


def test_a_report_that_came_after_its_weights_is_stamped_with_both_commits(repository):
    assert "2026-01-02T12:00:00" in stamped(repository) and "the same since" in stamped(repository)


def rewrite(root: Path, **fields) -> None:
    file = root / "report.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def new_weights(root: Path) -> None:
    (root / "models" / "mine" / "w.safetensors").write_bytes(b"two")


def test_what_git_does_not_show_is_not_stamped(repository):
    rewrite(repository, steps=10)
    with pytest.raises(SystemExit, match="in no commit"):
        stamped(repository)
    new_weights(repository)
    commit(repository, "2026-01-02T18:00:00")
    with pytest.raises(SystemExit, match="has changed since .*2026-01-02T12"):  # its form changed, not its figures
        stamped(repository)
    rewrite(repository, ms=[1.25, 2.25, 3.25])
    commit(repository, "2026-01-02T19:00:00")
    assert "2026-01-02T19" in stamped(repository)  # measured anew
    rewrite(repository, ms=[7.5, 8.5], date="2026-01-01")
    commit(repository, "2026-01-03T19:00:00")
    with pytest.raises(SystemExit, match="may have been measured before"):
        stamped(repository)


def test_a_report_that_came_with_its_weights_is_not_stamped(repository):
    new_weights(repository)
    rewrite(repository, ms=[9.5, 8.5, 7.5])
    commit(repository, "2026-01-02T18:00:00")
    with pytest.raises(SystemExit, match="may have been measured before"):
        stamped(repository)
