"""How the feature terms are added up: per kind, per layer, or as the paper's plain sum, each trained once on one seed.

    python -m recipes.measure.feature_sum --runs runs/feature-sum --out docs/measurements/feature-sum.json

Three runs of the preset `10-minutes` that differ in `normalisation` alone, from the same surgery, pictures and noise.
A run that was cut off goes on, and one that is done is only scored. One seed says which form is far off, not which of
two close ones is better.
"""

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path

from koala.distill.config import NORMALISATIONS
from koala.distill.presets import PRESETS
from koala.distill.run.folder import RunFolder
from koala.evaluate.shapes import evaluate
from koala.files.outputs import new_file
from koala.hardware.timing import device_name
from koala.models.library import Library
from koala.models.measured import weights
from koala.sampling.generate import versions

PRESET = "10-minutes"
SUITES = ("one_object", "two_objects")
LAST = 10  # lines of metrics.jsonl that a run's last shares are means of


def shares(entries: list[dict]) -> dict[str, float]:
    """What part of the feature loss each kind has, as a mean over lines of metrics.jsonl."""
    kinds = [name for name in ("SA", "LF") if name in entries[0]]
    parts = [{kind: entry[kind] / sum(entry[k] for k in kinds) for kind in kinds} for entry in entries]
    return {kind: round(sum(part[kind] for part in parts) / len(parts), 4) for kind in kinds}


def trained(run: RunFolder, normalisation: str, settings: list[str]) -> None:
    """Begin the run or go on with it, in a process of its own, until it is done."""
    status = run.status()
    if status and status.state == "done":
        return
    where = ["--resume", str(run.path)] if run.checkpoints() else ["--preset", PRESET, "--out", str(run.path)]
    chosen = [] if run.checkpoints() else [f"normalisation={normalisation}", *settings]
    subprocess.run([sys.executable, "-m", "koala", "distill", *where, *chosen], check=True)


def measured(run: RunFolder, num_prompts: int) -> dict:
    """A run's curves in numbers, and the score of its student."""
    entries = list(run.metrics())
    train = [e for e in entries if e["kind"] == "train"]
    validation = [e for e in entries if e["kind"] == "validation"]
    score = evaluate(Library("cpu").get(str(run.student)), count=num_prompts, suites=SUITES)["scores"]
    return {
        "feature_shares_first": shares(train[:1]),
        "feature_shares_last": shares(train[-LAST:]),
        "feature_loss_first": round(sum(train[0].get(k, 0.0) for k in ("SA", "LF")), 4),
        "task_loss_first": round(train[0]["task"], 4),
        "validation": [{k: round(e[k], 5) for k in ("step", "task", "output")} for e in validation],
        "scores": {suite: {claim: rates["rate"] for claim, rates in score[suite].items()} for suite in SUITES},
        "training_seconds": train[-1]["seconds"],
    }


def main() -> None:
    """Train what is not trained yet, score all, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, metavar="DIR", help="where the three runs lie")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--num-prompts", type=int, default=200)
    parser.add_argument("settings", nargs="*", metavar="field=value", help="over the preset's, the same for all three")
    args = parser.parse_args()
    measurements = {}
    for normalisation in NORMALISATIONS:
        run = RunFolder(path=args.runs / normalisation)
        trained(run, normalisation, args.settings)
        measurements[normalisation] = measured(run, args.num_prompts)
    config = PRESETS[PRESET].config
    result = {
        "command": " ".join(["python -m recipes.measure.feature_sum", *sys.argv[1:]]),
        "device": device_name(Library("cpu").device),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "weights": weights([config.teacher, *(RunFolder(path=args.runs / name).student for name in NORMALISATIONS)]),
        "seed": config.seed,
        "num_steps": run.config().num_steps,
        "batch_size": config.batch_size,
        "num_prompts": args.num_prompts,
        "normalisation": measurements,
    }
    with new_file(args.out) as file:
        file.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps({name: entry["scores"]["one_object"]["all"] for name, entry in measurements.items()}))


if __name__ == "__main__":
    main()
