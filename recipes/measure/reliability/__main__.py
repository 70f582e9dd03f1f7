"""How reliable the app, the server and a run are: every attack of this folder, its outcome into a JSON file.

    python -m recipes.measure.reliability --out docs/measurements/reliability.json
    python -m recipes.measure.reliability --only clients judge --out part.json
    python -m recipes.measure.reliability --page docs/reliability.md --out docs/measurements/reliability.json

`--page` writes the page from the JSON and measures nothing. The default tests run a short version of each attack.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from koala.evaluate.reports import circumstances
from koala.files.outputs import new_file
from recipes.measure.reliability import alone, server
from recipes.measure.reliability.running import App, Trial, markdown, served

ON_A_SERVER: dict[str, Callable[[App], Trial]] = {
    "clients": partial(server.at_once, clients=50),
    "hostile": partial(server.doors, count=1000),
    "bodies": partial(server.too_large, megabytes=60),
    "memory": partial(server.per_session, generations=200, captures=50),
    "pages": partial(server.with_captures, captures=8),
}
ALONE: dict[str, Callable[[Path], Trial]] = {
    "judge": lambda folder: alone.cost(),
    "kills": alone.killed,
    "flips": alone.flipped,
    "sites": alone.cross_site,
}
MODELS = ("tiny-sdxl", "tiny-koala-700m")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = (*ON_A_SERVER, *ALONE)
    parser.add_argument("--only", nargs="+", choices=known, default=known, help="these attacks (default: all)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json", help="earlier outcomes in it are kept")
    parser.add_argument("--page", type=Path, metavar="FILE.md", help="write this page from --out, and measure nothing")
    args = parser.parse_args()
    if args.page:
        with new_file(args.page) as partial:
            partial.write_text(markdown(json.loads(args.out.read_text())), encoding="utf-8")
        return
    report = json.loads(args.out.read_text()) if args.out.exists() else {"attacks": {}}
    for name, trial, seconds in attack(args.only):
        print(f"{name}: {trial.survived} of {trial.tried} survived, {seconds:.0f} s {dict(trial.figures)}", flush=True)
        for failure in trial.failures:
            print(f"  {failure}", file=sys.stderr, flush=True)
        report["attacks"][name] = trial.to_dict() | {"seconds": round(seconds)} | about()
        with new_file(args.out) as partial:
            partial.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    if not all(a["survived"] == a["tried"] and not a["failures"] for a in report["attacks"].values()):
        sys.exit("not everything survived")


def attack(names: Sequence[str]) -> Iterator[tuple[str, Trial, float]]:
    """Each of these attacks with its outcome and its seconds; those on a server share one app."""
    with tempfile.TemporaryDirectory() as folder, ExitStack() as running:
        app: App | None = None
        for name in names:
            if name in ON_A_SERVER:
                app = app or running.enter_context(served(Path(folder) / "app"))
                before, begun = app.tracebacks(), time.monotonic()
                trial = ON_A_SERVER[name](app)
                if new := app.tracebacks() - before:
                    trial = replace(trial, failures=(*trial.failures, f"{new} tracebacks in the app's log"))
            else:
                begun = time.monotonic()
                trial = ALONE[name](Path(folder) / name)
            yield name, trial, time.monotonic() - begun


def about() -> dict:
    """Command, machine, date and weights of a measurement."""
    return circumstances(sys.argv[1:], torch.device("cpu"), program="recipes.measure.reliability", weights=MODELS)


if __name__ == "__main__":
    main()
