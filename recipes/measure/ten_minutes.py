"""What ten minutes of distillation on two cores give: the preset run, then the shapes score of its student.

    python -m recipes.measure.ten_minutes --run runs/ten-minutes --out docs/measurements/distill-10-minutes.json

From surgery alone, beside the teacher's own score. A run that is done already is only scored.
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

PRESET = "10-minutes"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--num-prompts", type=int, default=200)
    args = parser.parse_args()

    run = RunFolder(path=args.run)
    if not (run.status() and run.status().state == "done"):
        subprocess.run(
            [sys.executable, "-m", "koala", "distill", "--preset", PRESET, "--out", str(run.path)], check=True
        )
    status, config = run.status(), run.config()
    library = Library("cpu")
    score = evaluate(library.get(str(run.student)), count=args.num_prompts, suites=("one_object",))
    mine = score["scores"]["one_object"]
    its = json.loads((EMBEDDED / "scores" / "tiny-sdxl.json").read_text())["scores"]["one_object"]
    report = {
        "command": f"python -m koala distill --preset {PRESET} --out {run.name}",
        "scored_by": " ".join(["python -m recipes.measure.ten_minutes", *sys.argv[1:]]),
        "device": device_name(library.device),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "weights": weights([config.teacher, run.student]),
        "seconds": round(status.updated - status.started),
        "threads": config.threads,
        "num_steps": status.step,
        "pictures_seen": status.step * config.batch_size,
        "score": {k: v for k, v in score.items() if k not in ("model", "scores")},
        "student": mine,
        "teacher": its,
        "share_of_teacher": round(mine["all"]["rate"] / its["all"]["rate"], 4),
    }
    with new_file(args.out) as file:
        file.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({k: report[k] for k in ("seconds", "share_of_teacher")}))


if __name__ == "__main__":
    main()
