r"""Rates of the embedded models over samplers, guidances and sizes: every combination, on the same prompts and noise.

Their sampler and guidance are chosen on prompts that are of the suites' kind but in none of them:

    python -m recipes.embedded.grid --scheduler euler-trailing euler-ancestral-trailing --guidance 1.5 2 3 \
        --series choice --out docs/measurements/embedded-sampling.json

How they do on other canvases, each with prompts whose scenes fit it:

    python -m recipes.embedded.grid --size 320x192 192x320 --num-prompts 500 --out docs/measurements/embedded-sizes.json

What is not asked is the model's own; rates are of whole prompts and of every kind of claim. The report is written after
every combination, and begun again with --out it goes on: rates of the same weights, prompts and versions are kept.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

from koala.evaluate.reports import circumstances
from koala.evaluate.shapes import STEPS, SUITES, evaluate
from koala.files.outputs import new_file
from koala.models.cards import CARDS
from koala.models.library import Library
from koala.request import SCHEDULERS


def size(text: str) -> tuple[int, int]:
    """Width and height in px out of "320x192"."""
    width, height = map(int, text.split("x"))
    return width, height


def earlier(out: Path, report: dict) -> dict[str, list[dict]]:
    """Rows by model of what `out` has of the same weights, prompts and versions; none where there is no such file."""
    before = json.loads(out.read_text()) if out.is_file() else {}
    if any(before.get(key) != report[key] for key in ("num_prompts", "steps", "series", "suites", "versions")):
        return {}
    return {
        name: rows for name, rows in before["models"].items() if before["weights"][name] == report["weights"].get(name)
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[c.name for c in CARDS.values() if c.embedded])
    parser.add_argument("--scheduler", nargs="+", choices=SCHEDULERS, default=[None])
    parser.add_argument("--guidance", type=float, nargs="+", default=[None])
    parser.add_argument("--size", type=size, nargs="+", default=[(None, None)], metavar="WIDTHxHEIGHT")
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=["two_objects"])
    parser.add_argument("--series", default="suite", help="another word than suite draws other prompts")
    parser.add_argument("--num-prompts", type=int, default=128)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    library = Library("cpu")
    models = {model.card.name: model for model in library.get_all(args.models)}
    report = {"num_prompts": args.num_prompts, "steps": STEPS, "series": args.series, "suites": args.suites}
    report |= circumstances(sys.argv[1:], library.device, program="recipes.embedded.grid", weights=models)
    combinations = list(itertools.product(args.scheduler, args.guidance, args.size))
    report["models"] = earlier(args.out, report)
    for name, model in models.items():
        kept, rows = report["models"].get(name, []), []
        for scheduler, guidance, (width, height) in combinations:
            asked = dict(scheduler=scheduler, guidance=guidance, width=width, height=height)
            chosen = {key: getattr(model.card, key) if value is None else value for key, value in asked.items()}
            row = next((r for r in kept if r | chosen == r), None)
            if row is None:
                same = dict(count=args.num_prompts, suites=tuple(args.suites), series=args.series)
                row = chosen | {"scores": evaluate(model, **chosen, **same)["scores"]}
            rows.append(row)
            report["models"][name] = rows + [r for r in kept if r not in rows]
            with new_file(args.out) as file:
                file.write_text(json.dumps(report, indent=1) + "\n")
            rates = (f"{k} {100 * v['all']['rate']:.1f} %" for k, v in row["scores"].items())
            print(name, *(str(value) for value in chosen.values()), *rates, flush=True)


if __name__ == "__main__":
    main()
