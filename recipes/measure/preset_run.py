r"""What a preset's distillation on two cores gives: the run, then the shapes score of its student and of its teacher.

    python -m recipes.measure.preset_run --run runs/ten-minutes --out docs/measurements/distill-10-minutes.json
    python -m recipes.measure.preset_run --preset few-steps --run runs/few-steps \
        --out docs/measurements/distill-few-steps.json

A run that is done already is only scored.
"""

import argparse
import datetime
import json
import subprocess
import sys
from pathlib import Path

from koala.distill.run.folder import RunFolder
from koala.evaluate.shapes import evaluate
from koala.files.outputs import new_file
from koala.hardware.timing import device_name
from koala.models.cards import EMBEDDED
from koala.models.library import Library
from koala.models.measured import weights
from koala.sampling.generate import versions

# What each preset teaches: 10-minutes begins at an untrained cut, few-steps at a teacher that draws two objects.
SUITES = {"10-minutes": ("one_object",), "few-steps": ("one_object", "two_objects")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", choices=SUITES, default="10-minutes")
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-prompts", type=int, default=200)
    args = parser.parse_args()

    run = RunFolder(path=args.run)
    if not (run.status() and run.status().state == "done"):
        subprocess.run(
            [sys.executable, "-m", "koala", "distill", "--preset", args.preset, "--out", str(run.path)], check=True
        )
    status, config = run.status(), run.config()
    library = Library("cpu")
    suites = SUITES[args.preset]
    score = evaluate(library.get(str(run.student)), count=args.num_prompts, suites=suites)
    teacher_scores = json.loads((EMBEDDED / "scores" / "tiny-sdxl.json").read_text())["scores"]
    own_scores, teacher_scores = score["scores"], {suite: teacher_scores[suite] for suite in suites}
    unguided = {}
    if config.method == "phased":  # the teacher in the same calls
        same = dict(steps=score["steps"], guidance=score["guidance"], scheduler=score["scheduler"])
        before = evaluate(library.get(config.teacher), count=args.num_prompts, suites=suites, **same)
        unguided = {"teacher_in_as_many_calls": before["scores"]}
    report = {
        "command": f"python -m koala distill --preset {args.preset} --out runs/{run.name}",
        # as it is typed in a clone: where this machine keeps its runs is nobody's concern
        "scored_by": f"python -m recipes.measure.preset_run --preset {args.preset} --run runs/{run.name} "
        f"--out docs/measurements/{args.out.name}",
        "device": device_name(library.device),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "weights": weights([config.teacher, run.student]),
        "seconds": round(status.updated - status.started),
        "threads": config.threads,
        "num_steps": status.step,
        "pictures_seen": status.step * config.batch_size,
        "score": {k: v for k, v in score.items() if k not in ("model", "scores")},
        "student": own_scores,
        "teacher": teacher_scores,
        **unguided,
        "share_of_teacher": {
            k: round(own_scores[k]["all"]["rate"] / teacher_scores[k]["all"]["rate"], 4) for k in suites
        },
    }
    with new_file(args.out) as file:
        file.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: report[k] for k in ("seconds", "share_of_teacher")}))


if __name__ == "__main__":
    main()
