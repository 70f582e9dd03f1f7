"""KOALA's figures 3b, 3c and 10 on the embedded world: self-attention of a teacher and of two students of it.

    python recipes/attention_figures.py --runs runs/attention --out runs/attention-figures

The students are alike but for what they are distilled by: self-attention (SA), or the last features of the stages
(LF), which BK-SDM matches. Each is a run of the preset "2-minutes", somewhat longer for a KOALA-1B; one that is done
already is only drawn. num_steps=900 takes six times as long and tells the two further apart.
"""

import argparse
import subprocess
import sys
from pathlib import Path

from koala.distill.run_folder import RunFolder
from koala.specs import STAGES

STUDENTS = {"SA": ["features=SA"], "LF": ["features=LF", f"stages={','.join(STAGES)}"]}
SAME = ["student_spec=koala-1b", "lf_at_ends=false"]  # SA alone, at the stages that have attention
PROMPT = "a red circle left of a blue square"
PIXEL = "90,128"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the two runs")
    parser.add_argument("--out", type=Path, required=True, help="new folder of the captures and figures")
    parser.add_argument("--prompt", default=PROMPT)
    parser.add_argument("--pixel", default=PIXEL, help="x,y of the marked patch")
    parser.add_argument("settings", nargs="*", metavar="FIELD=VALUE", help="of both distillations")
    args = parser.parse_args()

    koala = [sys.executable, "-m", "koala"]
    students = []
    for name, own in STUDENTS.items():
        run = RunFolder(path=args.runs / name)
        if not (run.status() and run.status().state == "done"):
            settings = [*SAME, *own, *args.settings]
            subprocess.run([*koala, "distill", "--preset", "2-minutes", "--out", str(run.path), *settings], check=True)
        students.append(str(run.student))
    drawn = ["--model", "tiny-sdxl", "--compare", *students, "--prompt", args.prompt, "--pixel", args.pixel]
    subprocess.run([*koala, "attention", *drawn, "--out", str(args.out)], check=True)


if __name__ == "__main__":
    main()
