"""The versions of the web stack that a server installs: complete, exact, current, and none with a known hole."""

import re
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from recipes.tools import constraints
from recipes.tools.constraints import Package, closure, differences, main

ROOT = Path(__file__).parents[2]
WRITTEN = (ROOT / "constraints-server.txt").read_text(encoding="utf-8")
PINS = dict(re.findall(r"^([a-z0-9-]+)==(\S+)$", WRITTEN, re.MULTILINE))
FACING = {"fastapi", "starlette", "uvicorn", "pydantic", "python-multipart", "gradio"}

# The first version without each published weakness of the stack.
MENDED = {
    "CVE-2025-62727, quadratic Range header": ("starlette", "0.49.1"),
    "CVE-2024-47874, form fields without a limit": ("starlette", "0.40.0"),
    "CVE-2026-24486, file names that leave the folder": ("python-multipart", "0.0.22"),
    "CVE-2024-53981, endless log lines": ("python-multipart", "0.0.18"),
    "CVE-2024-3772, e-mail pattern without end": ("pydantic", "2.4.0"),
    "CVE-2025-43859, smuggled requests": ("h11", "0.16.0"),
    "CVE-2026-59806, open redirect of a file's address": ("gradio", "6.20.0"),
    "CVE-2026-111497, Brotli bombs, as Gradio 6.31 mends them": ("gradio", "6.31.0"),
    "CVE-2025-6176, Brotli bombs": ("brotli", "1.2.0"),
    "CVE-2025-27516, a way out of the sandbox": ("jinja2", "3.1.6"),
    "CVE-2024-39689, roots that are no longer trusted": ("certifi", "2024.7.4"),
    "CVE-2024-3651, quadratic host names": ("idna", "3.7"),
    "CVE-2025-67221, nesting without a limit": ("orjson", "3.11.6"),
    "CVE-2025-48379, 2026-25990, writes beyond a buffer": ("pillow", "12.1.1"),
    "CVE-2025-68146, a lock that follows a link": ("filelock", "3.20.1"),
    "CVE-2024-34062, options that are evaluated": ("tqdm", "4.66.3"),
}


def test_it_holds_exact_versions_and_nothing_of_the_machine_that_wrote_it():
    lines = WRITTEN.splitlines()
    versions = [line for line in lines if not line.startswith("#")]
    assert [line for line in versions if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*==[0-9][0-9a-z.]*", line)] == []
    names = [line.split("==")[0] for line in versions]
    assert names == sorted(set(names)) == list(PINS)
    assert not re.search(r"://|@|\\|/(?!\w+$)|\b(?:file|https?|index|host|hash)\b|\+", WRITTEN)


def test_every_package_that_faces_strangers_is_pinned_with_all_that_it_needs():
    """Looked up one by one in this environment's metadata: nothing needed is missing, nothing else is there."""
    needed = set()
    for name in PINS:
        for need in map(Requirement, distribution(name).requires or ()):
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                needed.add(re.sub(r"[-_.]+", "-", need.name).lower())
    assert needed - set(PINS) == set() and set(PINS) >= FACING
    assert set(PINS) - needed - FACING == set()


def test_it_is_what_this_environment_has():
    """So it is what the other tests ran with."""
    different = {n: (v, distribution(n).version) for n, v in PINS.items() if distribution(n).version != v}
    assert not different, f"{different}; pip install -r requirements-dev.txt, or python -m recipes.tools.constraints"
    assert main(["--check"]) == 0


@pytest.mark.parametrize("weakness", MENDED)
def test_no_version_has_a_published_weakness(weakness):
    name, mended = MENDED[weakness]
    assert Version(PINS[name]) >= Version(mended), weakness


def test_requirements_apply_it_and_agree_with_it():
    text = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    assert text.splitlines().count("-c constraints-server.txt") == 1
    assert "-r requirements.txt" in (ROOT / "requirements-dev.txt").read_text(encoding="utf-8").splitlines()
    direct = {n.lower().replace("_", "-"): v for n, v in re.findall(r"^([\w-]+)==([\w.]+)", text, re.MULTILINE)}
    both = direct.keys() & PINS.keys()
    assert "gradio" in both and {n: direct[n] for n in both} == {n: PINS[n] for n in both}


def packages(**requires: str) -> dict[str, Package]:
    """A small world: name -> its requirements, one a line; everything has version 1."""
    return {n: Package(name=n, version="1", requires=tuple(r.split("\n") if r else ())) for n, r in requires.items()}


def test_the_closure_follows_markers_extras_and_circles():
    world = packages(
        a='B>=1\nc[fast]; python_version > "3"\nwin; sys_platform == "win32"\ndocs; extra == "docs"',
        b="a",
        c='quick; extra == "fast"\nslow; extra == "careful"',
        quick="",
        slow="",
        docs="",
        unrelated="",
    )
    result, elsewhere = closure(world, ["A"])
    assert [p.name for p in result] == ["a", "b", "c", "quick"] and elsewhere == ["win"]


def test_a_package_that_is_missing_or_built_here_is_refused():
    with pytest.raises(RuntimeError, match="b is not installed.*pip install -r requirements.txt"):
        closure(packages(a="b"), ["a"])
    world = {"a": Package(name="a", version="1+cpu", requires=())}
    with pytest.raises(RuntimeError, match=r"a 1\+cpu.*local build"):
        constraints.text(world, ["a"])


def test_a_copy_that_another_package_brings_along_is_not_the_one_that_is_imported(tmp_path, monkeypatch):
    """setuptools puts its own copies at the end of the path when a test imports it."""
    copy = tmp_path / "packaging-1.0.dist-info"
    copy.mkdir()
    (copy / "METADATA").write_text("Metadata-Version: 2.1\nName: packaging\nVersion: 1.0\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    assert constraints.installed()["packaging"].version == "1.0"
    sys.path.append(sys.path.pop(0))
    assert constraints.installed()["packaging"].version == distribution("packaging").version != "1.0"


def test_a_check_names_every_difference():
    here = constraints.installed()
    assert differences(WRITTEN, here) == []
    changed = WRITTEN.replace(f"starlette=={PINS['starlette']}", "starlette==0.1")
    assert differences(changed + "leftover==3\n", here) == [
        "leftover: 3 in constraints-server.txt, not needed here",
        f"starlette: 0.1 in constraints-server.txt, {PINS['starlette']} here",
    ]


@pytest.mark.slow
@pytest.mark.network
def test_pip_resolves_the_newest_and_finds_no_withdrawn_version():
    result = constraints.newest()
    assert set(PINS) >= FACING and {p.name for p in closure(result)[0]} >= FACING
