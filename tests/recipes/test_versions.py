"""The version ranges of pyproject.toml: their lowest versions were installed and used; the newest can be tried."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from recipes.measure import versions

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
RANGES = {r.name: r.specifier for r in map(Requirement, PROJECT["dependencies"])}
TRIED = json.loads((ROOT / "docs" / "measurements" / "versions.json").read_text())["environments"]
STEPS = {"draws a picture", "cuts a student", "exports the student", "draws with the export", "imports every module"}


def lowest(specifier: SpecifierSet) -> Version:
    """The bound that `>=` names."""
    (bound,) = (Version(s.version) for s in specifier if s.operator == ">=")
    return bound


def of_requirements() -> dict[str, Version]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    result = [Requirement(line) for line in lines if line and line[0] not in "#-"]
    return {r.name: Version(next(iter(r.specifier)).version) for r in result}


@pytest.mark.parametrize("environment", versions.ENVIRONMENTS)
def test_every_step_worked_in_every_environment(environment):
    outcome = TRIED[environment]["steps"]
    assert set(outcome) >= STEPS and set(outcome.values()) == {"ok"}, outcome


@pytest.mark.parametrize("environment", ["lowest", "floor"])
def test_every_lower_bound_was_tried(environment):
    """Two notations may name one version: 3.0 is 3.0.0."""
    tried = {name: Version(Version(v).public) for name, v in TRIED[environment]["versions"].items()}
    expected = {name: lowest(RANGES[name]) for name in tried}
    if environment == "lowest":
        expected["torch"] = of_requirements()["torch"]
    assert tried == expected
    assert set(RANGES) - set(tried) == {"onnxruntime"}  # where onnxruntime-gpu has no wheel


def test_the_newest_that_were_tried_are_as_new_as_the_pins_and_within_the_ranges():
    """Otherwise the measurement is older than what requirements.txt installs."""
    tried = {name: Version(Version(v).public) for name, v in TRIED["newest"]["versions"].items()}
    pins = of_requirements()
    assert set(RANGES) - set(tried) == {"onnxruntime"}
    older = {n: str(v) for n, v in tried.items() if n in pins and v < Version(pins[n].public)}
    assert older == {} and {n: str(v) for n, v in tried.items() if v not in RANGES[n]} == {}


def test_the_bounds_of_torch_and_python_are_the_lowest_that_were_tried():
    assert lowest(RANGES["torch"]) == min(Version(Version(e["versions"]["torch"]).public) for e in TRIED.values())
    python = lowest(SpecifierSet(PROJECT["requires-python"]))
    assert python.release == min(Version(e["python"]).release[:2] for e in TRIED.values())


def test_every_pin_is_within_its_range():
    assert {n: str(v) for n, v in of_requirements().items() if n not in RANGES or v not in RANGES[n]} == {}


def test_what_pip_is_asked_for_is_the_lower_bounds_and_one_torch():
    asked = {r.name: str(r.specifier) for r in map(Requirement, versions.wanted("lowest"))}
    assert asked["torch"] == f"=={of_requirements()['torch'].public}" and asked["diffusers"] != ""
    assert {n: s for n, s in asked.items() if n != "torch" and Version(s[2:]) != lowest(RANGES[n])} == {}
    assert f"torch=={lowest(RANGES['torch'])}" in versions.wanted("floor")
    with pytest.raises(ValueError, match="scipy.*names no lowest version"):
        versions.floor(Requirement("scipy<2"))


def test_a_step_that_fails_is_named_with_its_last_line(tmp_path):
    fails = [sys.executable, "-c", "import sys; print('drawing'); sys.exit('no module named hats')"]
    outcome = {
        "draws": versions.attempt([sys.executable, "-c", ""], tmp_path),
        "cuts": versions.attempt(fails, tmp_path),
    }
    assert outcome["draws"] == "ok"
    (line,) = versions.failures({"lowest": {"steps": outcome}})
    assert line == "lowest: cuts: no module named hats"


@pytest.mark.slow
@pytest.mark.network
@pytest.mark.parametrize("environment", ["lowest", "newest"])
def test_the_ranges_hold_today(environment, tmp_path):
    """In a fresh environment of pip: what failed is the last thing that the command prints."""
    command = [sys.executable, "-m", "recipes.measure.versions", "--environments", environment]
    command += ["--out", str(tmp_path / "versions.json")]
    done = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-3000:]}"
