"""The embedded models' guidance, chosen on prompts that are of the suites' kind but in none of them.

    python -m recipes.embedded.guidance --guidance 1.5 2 3 5 --out docs/measurements/embedded-guidance.json

The same prompts and noise for every value and model; rates of whole prompts and of every kind of claim.
"""

import argparse
import json
import sys
from pathlib import Path

from koala.evaluate.reports import circumstances
from koala.evaluate.shapes import STEPS, SUITES, evaluate
from koala.loading import Library
from koala.outputs import new_file
from koala.registry import CARDS

SERIES = "choice"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[c.name for c in CARDS.values() if c.embedded])
    parser.add_argument("--guidance", type=float, nargs="+", required=True)
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=["two_objects"])
    parser.add_argument("--num-prompts", type=int, default=128)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    library, found = Library("cpu"), {}
    for name in args.models:
        model = library.get(name)
        for guidance in args.guidance:
            settings = dict(count=args.num_prompts, suites=tuple(args.suites), guidance=guidance, series=SERIES)
            scores = evaluate(model, **settings)["scores"]
            found.setdefault(model.card.name, {})[f"{guidance:g}"] = scores
            print(name, f"guidance {guidance:g}:", *(f"{k} {100 * v['all']['rate']:.1f} %" for k, v in scores.items()))
    report = {"num_prompts": args.num_prompts, "steps": STEPS, "series": SERIES, "scores": found}
    report |= circumstances(sys.argv[1:], library, program="recipes.embedded.guidance")
    with new_file(args.out) as file:
        file.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
