"""Add the weights' hashes to a report that was made before reports had them, where git shows which weights those were.

    python -m recipes.measure.stamp docs/measurements/first-screen.json --models tiny-sdxl tiny-koala-1b tiny-koala-700m
    python -m recipes.measure.stamp docs/measurements/bench-full-size-cpu.json --random

For what takes too long to measure again. Refused are a report that has hashes, one with changes that are in no commit,
one whose weights have changed since the commit in which its figures first appear, and one that is older than its
weights. The report then says, as "weights_by", how the hashes were found: not by the run. `--random` is for a report
that says itself that its weights were random.
"""

import argparse
import hashlib
import json
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from koala.files.outputs import new_file
from koala.models.cards import EMBEDDED
from koala.models.measured import RANDOM, weights

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, kw_only=True)
class Commit:
    """One commit: its hash, and when it was made (ISO 8601)."""

    sha: str
    date: str

    def __str__(self) -> str:
        return f"{self.sha[:7]} ({self.date})"


def git(*arguments: str, root: Path = ROOT) -> bytes:
    """What git prints; CalledProcessError where it refuses."""
    return subprocess.run(["git", "-C", str(root), *arguments], check=True, capture_output=True).stdout


def last(*paths: str, root: Path = ROOT) -> Commit:
    """The last commit that changed any of the paths."""
    sha, _, date = git("log", "-1", "--format=%H %cI", "--", *paths, root=root).decode().strip().partition(" ")
    if not sha:
        raise SystemExit(f"{', '.join(paths)}: in no commit")
    return Commit(sha=sha, date=date)


def decimals(value: object) -> Counter[float]:
    """Every fraction in a report: what no second measurement finds again."""
    if isinstance(value, float):
        return Counter([value])
    values = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return sum(map(decimals, values), Counter())


def wrote(name: str, root: Path = ROOT) -> Commit:
    """The commit in which a report's figures first appear: later ones only changed its form.

    An earlier version is the same measurement where date and command are the same and a third of its fractions are.
    """
    first = None
    for line in git("log", "--format=%H %cI", "--", name, root=root).decode().splitlines():
        sha, _, date = line.partition(" ")
        report = json.loads(git("show", f"{sha}:{name}", root=root))
        own, header = decimals(report), (report.get("date"), report.get("command"))
        if first is None:
            newest_decimals, newest = own, header
        elif header != newest or 3 * (newest_decimals & own).total() < newest_decimals.total():
            break
        first = Commit(sha=sha, date=date)
    if first is None:
        raise SystemExit(f"{name} is in no commit")
    return first


def derived(report: Path, models: dict[str, dict[str, str]], where: Path, root: Path = ROOT) -> str:
    """Why the report was made with these weights; SystemExit where git does not show it. `where` holds the models."""
    name = report.resolve().relative_to(root).as_posix()
    if git("status", "--porcelain", "--", name, root=root):
        raise SystemExit(f"{name} has changes that are in no commit; commit them or take them back first")
    first = wrote(name, root)
    folder = where.relative_to(root).as_posix()
    files = {f"{folder}/{model}/{file}": sha256 for model, own in models.items() for file, sha256 in own.items()}
    for file, sha256 in files.items():
        if hashlib.sha256(git("show", f"{first.sha}:{file}", root=root)).hexdigest() != sha256:
            raise SystemExit(f"{file} has changed since {first} wrote {name}; measure it again")
    changed = last(*files, root=root)
    date = json.loads(report.read_text()).get("date", "")
    if changed.sha == first.sha or date < changed.date[:10]:
        raise SystemExit(
            f"{name} may have been measured before {changed} changed its weights: it is of {date or 'no date'} and "
            f"{first} wrote it; measure it again"
        )
    return (
        f"git, not the run: {first} wrote these figures, and the weights have been the same since {changed}, "
        "before it; recipes.measure.stamp"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("report", type=Path, metavar="FILE.json")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--models", nargs="+", choices=sorted(f.parent.name for f in EMBEDDED.glob("*/unet")))
    which.add_argument("--random", action="store_true", help="the report itself says so")
    args = parser.parse_args()

    report = json.loads(args.report.read_text())
    if "weights" in report:
        sys.exit(f"{args.report} says its weights already")
    if args.random:
        if report.get("random_weights") is not True:
            sys.exit(f'{args.report} does not say "random_weights": true')
        added = {"weights": RANDOM, "weights_by": 'the report\'s own "random_weights"; recipes.measure.stamp'}
    else:
        own = weights(args.models)
        added = {"weights": own, "weights_by": derived(args.report, own, EMBEDDED)}
    with new_file(args.report) as file:
        file.write_text(json.dumps(report | added, indent=1) + "\n")
    print(f"{args.report}: {added['weights_by']}")


if __name__ == "__main__":
    main()
