"""How a run's teacher is guided, and how its student is to be sampled: as its method taught it."""

import dataclasses
import json
from pathlib import Path

from koala.distill.config import DistillConfig
from koala.errors import UserError
from koala.files.outputs import new_file
from koala.files.reading import read_object
from koala.models.cards import ModelCard
from koala.models.layout import DRAWING
from koala.models.registry import drawing_of, find
from koala.models.schedulers import build
from koala.models.semantics import INDEX, SCHEDULER, with_class_defaults

FEW_STEPS = "euler-trailing"  # in as many steps as there are phases it visits their ends


def guidance_range(config: DistillConfig, teacher: ModelCard) -> tuple[float, float]:
    """The scales with which the teacher is guided, 1 for none; by default the one that it is usually sampled with.

    UserError for the method `guidance` with a teacher that is drawn without.
    """
    low, high = config.guidance_min, config.guidance_max
    if not high:
        low = high = max(teacher.guidance, 1.0)
    if config.method == "guidance" and high <= 1:
        raise UserError(
            f"method=guidance teaches the effect of guidance, and {teacher.name} has none here; set guidance_min=2 "
            "guidance_max=2, for example, or choose another teacher"
        )
    return low, high


def write_sampling(config: DistillConfig, folder: Path) -> None:
    """Write into a student's folder how it is sampled, where that is not as its teacher is."""
    card = find(config.teacher)
    noising = _noising(config, card)
    if config.method == "koala":
        if not noising:
            return
        student = dataclasses.replace(find(str(folder)), **noising)
    else:
        side = {"width": config.resolution, "height": config.resolution} if config.resolution else {}
        few = {"scheduler": FEW_STEPS, "steps": config.phases} if config.method == "phased" else {}
        student = dataclasses.replace(card, guidance=0.0, negative_prompt="", **side | noising | few)
    with new_file(folder / DRAWING) as partial:
        partial.write_text(json.dumps(drawing_of(student), indent=1) + "\n")
    if config.method == "phased" or "scheduler" in noising:
        _write_scheduler(folder, student.scheduler)


def _noising(config: DistillConfig, teacher: ModelCard) -> dict[str, object]:
    """What changes where the student learns with another noising than its teacher did.

    On the straight path pure noise is the last timestep alone, at which only trailing timesteps begin.
    """
    if config.noising in ("teacher", teacher.noising):
        return {}
    trailing = {} if config.noising == "ddpm" or teacher.scheduler.endswith("-trailing") else {"scheduler": FEW_STEPS}
    return {"noising": config.noising} | trailing


def _write_scheduler(folder: Path, name: str) -> None:
    """For programs that read no koala.json: the pipeline's own scheduler becomes the one of this name."""
    file, index = folder / SCHEDULER, folder / INDEX
    scheduler = build(name, with_class_defaults(read_object(file)))
    values = read_object(index) | {"scheduler": ["diffusers", type(scheduler).__name__]}
    with new_file(index) as partial:
        partial.write_text(json.dumps(values, indent=2) + "\n")
    with new_file(file) as partial:
        partial.write_text(scheduler.to_json_string())
