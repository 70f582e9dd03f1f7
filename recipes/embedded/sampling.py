"""The embedded models' sampler and guidance, chosen on prompts that are of the suites' kind but in none of them.

    python -m recipes.embedded.sampling --guidance 1.5 2 3 --scheduler euler-trailing euler-ancestral-trailing \
        --out docs/measurements/embedded-sampling.json

The same prompts and noise for every choice and model; rates of whole prompts and of every kind of claim.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

from koala.evaluate.reports import circumstances
from koala.evaluate.shapes import STEPS, SUITES, evaluate
from koala.loading import Library
from koala.outputs import new_file
from koala.registry import CARDS
from koala.request import SCHEDULERS

SERIES = "choice"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=[c.name for c in CARDS.values() if c.embedded])
    parser.add_argument("--guidance", type=float, nargs="+", required=True)
    parser.add_argument("--scheduler", nargs="+", choices=SCHEDULERS, required=True)
    parser.add_argument("--suites", nargs="+", choices=SUITES, default=["two_objects"])
    parser.add_argument("--num-prompts", type=int, default=128)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    library, found = Library("cpu"), {}
    for name in args.models:
        model = library.get(name)
        rows = found[model.card.name] = []
        for scheduler, guidance in itertools.product(args.scheduler, args.guidance):
            chosen = dict(scheduler=scheduler, guidance=guidance)
            same = dict(count=args.num_prompts, suites=tuple(args.suites), series=SERIES)
            scores = evaluate(model, **chosen, **same)["scores"]
            rows.append(chosen | {"scores": scores})
            said = (f"{k} {100 * v['all']['rate']:.1f} %" for k, v in scores.items())
            print(name, scheduler, f"guidance {guidance:g}:", *said, flush=True)
    report = {"num_prompts": args.num_prompts, "steps": STEPS, "series": SERIES, "models": found}
    report |= circumstances(sys.argv[1:], library.device, program="recipes.embedded.sampling")
    with new_file(args.out) as file:
        file.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
