"""Every memory plan at full size on a card that is only described: what is predicted, and what was counted.

    python -m recipes.measure.gpu_rehearsal --out docs/measurements/gpu-rehearsal.json
    python -m recipes.measure.gpu_rehearsal --few-steps --out docs/measurements/few-steps-rehearsal.json

The program's own code runs on tensors without data (recipes/rehearsal), so it takes minutes, no card and little memory.
Predicted are weights and live tensors, without what convolutions ask for in addition, which only a card can tell. Exit
code 1 where devices, precisions, kernels, moves or bytes are not as the plan says.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch

from koala.console import no_bars
from koala.distill.config import DistillConfig
from koala.distill.settings import read
from koala.evaluate.reports import circumstances
from koala.files.outputs import new_file
from koala.models.measured import NONE
from recipes.rehearsal.cases import card, cases
from recipes.rehearsal.distillation import train

TRAINING = DistillConfig(teacher="sdxl-base", student_spec="koala-700m", data="shapes", resolution=1024, batch_size=2)
HALF = {"precision": "bf16", "teacher_precision": "bf16"}
SINGLE = {"precision": "fp32", "teacher_precision": "fp32"}
FULL_SCALE = Path(__file__).parents[1] / "full_scale"
FEW_STEPS = ("koala-700m-pcm", "sdxl-pcm-lora-24gb")
# One pass of the recipe; AdamW's 8-bit states need a card, and without one a moving average in host memory cannot be
# told from one on the card.
PASS = {"accumulation": 1, "optimizer": "adamw"}


def few_steps(recipe: str) -> DistillConfig:
    """One pass of a few-step recipe at full scale, as it can be rehearsed."""
    config = read(FULL_SCALE / f"{recipe}.json")
    average = {"ema_decay": 0.0, "ema_device": "student"} if config.ema_device == "cpu" else {}
    return replace(config, batch_size=config.batch_size // config.accumulation, **PASS | average)


def rehearsals() -> Iterator[tuple[dict, tuple[str, ...]]]:
    """A row of the report, and what is wrong with it, for each case."""
    for case in cases():
        outcome = case.run()
        yield outcome.row(), outcome.problems
    for settings in (HALF, SINGLE):
        for checkpointing in (False, True):
            config = DistillConfig(**TRAINING.to_dict() | settings | {"gradient_checkpointing": checkpointing})
            training = train(config, card(80))
            yield training.row(), training.problems


def of_few_steps() -> Iterator[tuple[dict, tuple[str, ...]]]:
    """The same for a pass of each few-step recipe at full scale."""
    for recipe in FEW_STEPS:
        training = train(few_steps(recipe), card(24))
        yield training.row() | {"recipe": recipe}, training.problems


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    parser.add_argument("--few-steps", action="store_true", help="the few-step recipes at full scale, and only those")
    args = parser.parse_args()
    no_bars()
    logging.disable(logging.WARNING)
    rows, wrong = [], []
    for row, problems in of_few_steps() if args.few_steps else rehearsals():
        rows.append(row)
        name = f"{row['case']}, {' and '.join(row['models'])}, {row['card']}"
        wrong += [f"{name}: {problem}" for problem in problems]
        summary = (
            row["refusal"]
            if row["plan"] is None
            else f"{row['tracked_bytes'] / 1e9:.2f} GB of {row['predicted_bytes'] / 1e9:.2f}"
        )
        print(f"{name}: {summary}", flush=True)
    report = circumstances(sys.argv[1:], torch.device("cpu"), program="recipes.measure.gpu_rehearsal", weights=NONE)
    with new_file(args.out) as partial:
        partial.write_text(json.dumps(report | {"rows": rows}, indent=1) + "\n")
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
