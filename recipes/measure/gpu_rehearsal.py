"""Every memory plan at full size on a card that is only described: what is predicted, and what was counted.

    python -m recipes.measure.gpu_rehearsal --out docs/measurements/gpu-rehearsal.json

The program's own code runs on tensors without data (recipes/rehearsal), so it takes minutes, no card and little memory.
Predicted are weights and live tensors, without what convolutions ask for beside them, which only a card can tell. Exit
code 1 where devices, precisions, kernels, moves or bytes are not as the plan says.
"""

import argparse
import json
import logging
import sys
from collections.abc import Iterator
from pathlib import Path

import torch

from koala.console import no_bars
from koala.distill.config import DistillConfig
from koala.evaluate.reports import circumstances
from koala.files.outputs import new_file
from koala.models.measured import NONE
from recipes.rehearsal.cases import card, cases
from recipes.rehearsal.distillation import train

TRAINING = DistillConfig(teacher="sdxl-base", student_spec="koala-700m", data="shapes", resolution=1024, batch_size=2)
HALF = {"precision": "bf16", "teacher_precision": "bf16"}
SINGLE = {"precision": "fp32", "teacher_precision": "fp32"}


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, metavar="FILE.json")
    args = parser.parse_args()
    no_bars()
    logging.disable(logging.WARNING)
    rows, wrong = [], []
    for row, problems in rehearsals():
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
