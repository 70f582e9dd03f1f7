"""Whether the tests notice a wrong line: about forty places are broken, one at a time, in a copy of the project.

    python -m recipes.measure.mutants --out docs/measurements/mutants.json
    python -m recipes.measure.mutants --only muon-without-nesterov ema-inverted --out docs/measurements/mutants.json

A mutant names a function and an expression in it, not a line, so that it survives a move within the file. One that no
longer applies is an error and not a catch; so is a test that fails without it. Exit status 1 says that too few were
caught.
"""

import argparse
import ast
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from koala.evaluate.reports import circumstances
from koala.files.outputs import new_file
from koala.models.measured import NONE

ROOT = Path(__file__).resolve().parents[2]
MUTANTS = Path(__file__).with_suffix(".json")
LEAST = 0.95  # share that must be caught
LONGEST = 600  # s of one mutant's tests


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """One wrong expression: in `module` (dotted) the function `function` (qualified) has `wrong` instead of `right`."""

    name: str
    module: str
    function: str
    right: str
    wrong: str
    tests: tuple[str, ...]  # files that should notice, relative to the root
    survives: str = ""  # why no test can notice it, where that is known


class DoesNotApply(Exception):
    """The function or the expression is not there, or there more than once."""


def mutants(file: Path = MUTANTS) -> tuple[Mutant, ...]:
    """The list next to this module."""
    entries = json.loads(file.read_text(encoding="utf-8"))
    return tuple(Mutant(**entry | {"tests": tuple(entry["tests"])}) for entry in entries)


def source_file(mutant: Mutant) -> Path:
    """Where the module is, relative to the root."""
    path = Path(*mutant.module.split("."))
    return path / "__init__.py" if (ROOT / path).is_dir() else path.with_suffix(".py")


def broken(source: str, mutant: Mutant) -> str:
    """The module's source with the wrong expression. DoesNotApply unless the right one is there exactly once."""
    function = _function(ast.parse(source), mutant)
    wanted = ast.unparse(ast.parse(mutant.right, mode="eval").body)
    matches = [n for n in ast.walk(function) if isinstance(n, ast.expr) and ast.unparse(n) == wanted]
    if len(matches) != 1:
        raise DoesNotApply(
            f"{mutant.name}: {mutant.right!r} is {len(matches)} times in {mutant.module}.{mutant.function}; "
            "correct the mutant, it may have moved"
        )
    (node,) = matches
    lines = source.encode().splitlines(keepends=True)  # columns of the tree count bytes
    start = sum(map(len, lines[: node.lineno - 1])) + node.col_offset
    end = sum(map(len, lines[: node.end_lineno - 1])) + node.end_col_offset
    whole = source.encode()
    changed = (whole[:start] + f"({mutant.wrong})".encode() + whole[end:]).decode()
    ast.parse(changed)
    return changed


def _function(tree: ast.AST, mutant: Mutant) -> ast.AST:
    place: ast.AST = tree
    for name in mutant.function.split("."):
        inside = [
            n
            for n in ast.iter_child_nodes(place)
            if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and n.name == name
        ]
        if len(inside) != 1:
            raise DoesNotApply(f"{mutant.name}: {mutant.module} has no {mutant.function}; correct the mutant")
        (place,) = inside
    return place


def copy_of(root: Path, folder: Path) -> Path:
    """A copy of the project's own files, without what git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        check=True,
    ).stdout.decode()
    for name in filter(None, listed.split("\0")):
        if (root / name).is_file():
            to = folder / name
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(root / name, to)
    return folder


def tested(root: Path, tests: Sequence[str]) -> tuple[int, str]:
    """pytest on these files: its exit status (0 passed, 1 a test failed) and the first test that failed."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider", "--no-header", *tests]
    environment = os.environ | {"PYTHONPATH": str(root), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=LONGEST)
    failed = [line.split()[1] for line in done.stdout.splitlines() if line.startswith(("FAILED ", "ERROR "))]
    return done.returncode, failed[0] if failed else done.stdout[-500:] + done.stderr[-500:]


def tried(mutant: Mutant, root: Path = ROOT) -> dict:
    """What became of one mutant: caught by which test, or survived. RuntimeError where the tests could not run."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        copy = copy_of(root, Path(folder))
        file = copy / source_file(mutant)
        wrong = broken(file.read_text(encoding="utf-8"), mutant)
        with new_file(file) as partial:
            partial.write_text(wrong, encoding="utf-8")
        try:
            code, message = tested(copy, mutant.tests)
        except subprocess.TimeoutExpired:
            code, message = 1, f"no end after {LONGEST} s"
    if code not in (0, 1):
        raise RuntimeError(f"{mutant.name}: pytest ended with {code}: {message}")
    outcome = {"caught": code == 1, "by": message if code == 1 else "", "seconds": round(time.monotonic() - begun, 1)}
    where = {"where": f"{mutant.module}.{mutant.function}", "right": mutant.right, "wrong": mutant.wrong}
    return where | outcome | ({"why": mutant.survives} if mutant.survives and code == 0 else {})


def kept(file: Path, known: dict[str, Mutant]) -> dict[str, dict]:
    """Earlier outcomes of the mutants that are still what they were."""
    earlier = json.loads(file.read_text())["mutants"] if file.exists() else {}
    same = {name for name, m in known.items() if name in earlier and earlier[name]["right"] == m.right}
    return {name: earlier[name] for name in same if earlier[name]["wrong"] == known[name].wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = {m.name: m for m in mutants()}
    parser.add_argument("--only", nargs="+", choices=known, default=list(known), metavar="NAME", help="default: all")
    parser.add_argument("--workers", type=int, default=2, help="mutants at once (default: 2)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="other outcomes in it are kept")
    args = parser.parse_args()
    chosen = [known[name] for name in args.only]
    for mutant in chosen:  # before anything takes time
        broken((ROOT / source_file(mutant)).read_text(encoding="utf-8"), mutant)
    code, message = tested(ROOT, sorted({test for m in chosen for test in m.tests}))
    if code:
        sys.exit(f"a test fails without any mutant: {message}")
    outcomes = kept(args.out, known)
    with ThreadPoolExecutor(args.workers) as pool:
        for mutant, outcome in zip(chosen, pool.map(tried, chosen), strict=True):
            outcomes[mutant.name] = outcome
            print(f"{mutant.name}: {'caught by ' + outcome['by'] if outcome['caught'] else 'SURVIVED'}", flush=True)
    caught = sum(outcome["caught"] for outcome in outcomes.values())
    outcomes = {name: outcomes[name] for name in known if name in outcomes}
    report = {"mutants": outcomes, "tried": len(outcomes), "caught": caught, "share": round(caught / len(outcomes), 4)}
    report |= circumstances(sys.argv[1:], torch.device("cpu"), program="recipes.measure.mutants", weights=NONE)
    with new_file(args.out) as partial:
        partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(f"{caught} of {len(outcomes)} caught ({caught / len(outcomes):.1%})")
    if caught < LEAST * len(outcomes):
        sys.exit(1)


if __name__ == "__main__":
    main()
