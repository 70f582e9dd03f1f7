"""KOALA's figures 3b, 3c and 10 on the embedded world: self-attention of a teacher and of two students of it.

    python -m recipes.tools.attention_figures --runs runs/attention --out runs/attention-figures

The students are alike but for what they are distilled by: self-attention (SA), or the last features of the stages
(LF), which BK-SDM matches. Each is 200 steps of the preset "2-minutes" from the same cut, six minutes on one core; one
that is done already is only drawn. Small figures are next to the large ones, and a JSON with every choice and how far
each student's attention is from the teacher's. num_steps=900 as a last argument is as long as the preset "10-minutes".
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

import torch
from PIL import Image

from koala.distill.run.folder import RunFolder
from koala.evaluate.reports import circumstances
from koala.files.outputs import new_file
from koala.unet.specs import STAGES

STUDENTS = {"SA": ["features=SA"], "LF": ["features=LF", f"stages={','.join(STAGES)}"]}
SAME = ["student_spec=koala-1b", "lf_at_ends=false", "num_steps=200", "validate_every=0"]
TEACHER = "tiny-sdxl"
PROMPT = "a red circle left of a blue square"
PIXEL = "56,120"


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
    asked = ["--prompt", args.prompt, "--pixel", args.pixel]
    drawn = ["--model", TEACHER, "--compare", *students, *asked, "--out", str(args.out), "--json"]
    done = subprocess.run([*koala, "attention", *drawn], check=True, stdout=subprocess.PIPE, text=True)
    report = json.dumps(_report(args, json.loads(done.stdout)), indent=1)
    with new_file(args.out / "attention-figures.json") as file:
        file.write_text(f"{report}\n")
    for name in ("pca", "rows"):  # small enough to ship
        with Image.open(args.out / f"{name}.png") as picture:
            few = picture.quantize(256, dither=Image.Dither.NONE)
        with new_file(args.out / f"attention-{name}.png") as file:
            few.save(file, "PNG", optimize=True)


def _report(args: argparse.Namespace, capture: dict) -> dict:
    """What the figures are of, and how far each student's attention is from the teacher's."""
    models = (TEACHER, *(RunFolder(path=args.runs / name).student for name in STUDENTS))
    return circumstances(
        sys.argv[1:], torch.device("cpu"), program="recipes.tools.attention_figures", weights=models
    ) | {
        "teacher": TEACHER,
        "students": {name: [*SAME, *own, *args.settings] for name, own in STUDENTS.items()},
        "prompt": args.prompt,
        "pixel": args.pixel,
        "layers": {one["title"]: one["layers"] for one in capture["models"]},
        "divergence_from_the_teacher": {
            name: {s["stage"]: round(statistics.mean(s["divergence"]), 4) for s in one["stages"] if s["divergence"]}
            for name, one in zip(STUDENTS, capture["agreement"], strict=True)
        },
        "cosine_to_the_teacher": {
            name: {s["stage"]: round(statistics.mean(s["cosine"]), 4) for s in one["stages"] if s["cosine"]}
            for name, one in zip(STUDENTS, capture["agreement"], strict=True)
        },
    }


if __name__ == "__main__":
    main()
