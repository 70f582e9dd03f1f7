"""The exact versions of the web stack that faces visitors, and of everything that it needs: constraints-server.txt.

python -m recipes.tools.constraints              # write the versions of this environment
python -m recipes.tools.constraints --newest     # write those that pip would choose today; install and test them
python -m recipes.tools.constraints --check      # exit 1 where the file differs from this environment
"""

import argparse
import json
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import distributions
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from koala.files.outputs import new_file

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "constraints-server.txt"
REQUIREMENTS = ROOT / "requirements.txt"
ROOTS = ("gradio", "fastapi", "starlette", "uvicorn", "pydantic", "python-multipart")
HEADER = f"""\
# The exact versions of the web stack that faces visitors and of everything that it needs:
# {", ".join(ROOTS)}.
# requirements.txt applies them, and so does the Space.
# Written by `python -m recipes.tools.constraints`; do not edit.
"""


@dataclass(frozen=True, kw_only=True)
class Package:
    """One installed distribution, or one that pip would install."""

    name: str  # canonical
    version: str
    requires: tuple[str, ...]  # requirements as its metadata has them


def installed() -> dict[str, Package]:
    """Every distribution of this environment, by canonical name; of two with one name the one that an import finds.

    setuptools, once imported, puts its own copies (of packaging, for one) at the end of `sys.path`.
    """
    packages = [(d.metadata["Name"], d.version, d.requires or ()) for d in distributions()]
    return by_name(reversed(packages))  # the first on the path is written last


def newest() -> dict[str, Package]:
    """What pip would install for requirements.txt today, by canonical name; RuntimeError with pip's own words."""
    own = [line for line in REQUIREMENTS.read_text(encoding="utf-8").splitlines() if not line.startswith("-c")]
    with tempfile.TemporaryDirectory() as folder:
        wanted, report_file = Path(folder) / "requirements.txt", Path(folder) / "report.json"
        wanted.write_text("\n".join(own) + "\n", encoding="utf-8")
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--dry-run", "--ignore-installed"]
        done = subprocess.run([*pip, "--report", report_file, "-r", wanted], capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"pip found no versions for requirements.txt: {done.stderr.strip()}")
        report = json.loads(report_file.read_text(encoding="utf-8"))["install"]
    if withdrawn := [line for line in done.stderr.splitlines() if "yanked version" in line]:  # pip only warns
        raise RuntimeError(f"their authors have withdrawn versions of requirements.txt: {' '.join(withdrawn)}")
    metadata = (p["metadata"] for p in report)
    return by_name((m["name"], m["version"], m.get("requires_dist", ())) for m in metadata)


def by_name(distributions: Iterable[tuple[str, str, Iterable[str]]]) -> dict[str, Package]:
    """(name, version, requirements) -> packages by canonical name."""
    packages = (Package(name=canonicalize_name(n), version=v, requires=tuple(r)) for n, v, r in distributions)
    return {package.name: package for package in packages}


def closure(packages: Mapping[str, Package], roots: Iterable[str] = ROOTS) -> tuple[list[Package], list[str]]:
    """The roots and everything that they need, by name; and what only other platforms need.

    RuntimeError where a package is missing.
    """
    todo = deque((canonicalize_name(root), frozenset[str]()) for root in roots)
    seen: set[tuple[str, frozenset[str]]] = set()
    elsewhere: set[str] = set()
    while todo:
        name, extras = todo.popleft()
        if (name, extras) in seen:
            continue
        seen.add((name, extras))
        if name not in packages:
            raise RuntimeError(f"{name} is not installed; run pip install -r requirements.txt first")
        for need in map(Requirement, packages[name].requires):
            if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in {"", *extras}):
                todo.append((canonicalize_name(need.name), frozenset(need.extras)))
            elif "extra" not in str(need.marker):
                elsewhere.add(canonicalize_name(need.name))
    names = {name for name, _ in seen}
    return [packages[name] for name in sorted(names)], sorted(elsewhere - names)


def text(packages: Mapping[str, Package], roots: Iterable[str] = ROOTS) -> str:
    """The file. RuntimeError for a version of a local build, which no index has."""
    pinned, elsewhere = closure(packages, roots)
    if local := [f"{p.name} {p.version}" for p in pinned if Version(p.version).local]:
        raise RuntimeError(f"{', '.join(local)}: a local build, which other machines cannot install")
    left_out = f"# Not pinned, since only other platforms or Python versions need it: {', '.join(elsewhere)}.\n"
    lines = "".join(f"{p.name}=={p.version}\n" for p in pinned)
    return HEADER + (left_out if elsewhere else "") + lines


def pins(written: str) -> dict[str, str]:
    """Name -> version of a file of exact versions."""
    lines = (line.split("==") for line in written.splitlines() if line and not line.startswith("#"))
    return {name: version for name, version in lines}


def differences(written: str, packages: Mapping[str, Package]) -> list[str]:
    """One line for every pin that differs from the packages, is missing, or is not needed."""
    file, here = pins(written), pins(text(packages))
    return [
        f"{name}: {file.get(name, 'nothing')} in {FILE.name}, {here.get(name, 'not needed')} here"
        for name in sorted({*file, *here})
        if file.get(name) != here.get(name)
    ]


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    way = parser.add_mutually_exclusive_group()
    way.add_argument("--newest", action="store_true", help="ask pip for today's versions instead of this environment")
    way.add_argument("--check", action="store_true", help="write nothing; exit 1 where file and environment differ")
    args = parser.parse_args(arguments)
    if not args.check:
        with new_file(FILE) as file:
            file.write_text(text(newest() if args.newest else installed()), encoding="utf-8")
        print(f"{len(pins(FILE.read_text(encoding='utf-8')))} versions in {FILE.name}")
    elif different := differences(FILE.read_text(encoding="utf-8"), installed()):
        remedy = (
            "Install them (pip install -r requirements-dev.txt), or write today's with this command without --check."
        )
        print("\n".join([*different, remedy]), file=sys.stderr)
        return 1
    else:
        print(f"{FILE.name} has the versions of this environment")
    return 0


if __name__ == "__main__":
    sys.exit(main())
