"""Evaluation suites by name, and the circumstances that are reported with every figure."""

import datetime
import shlex
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import torch

from koala.evaluate import agreement, judge_accuracy, picture_folder, steps
from koala.evaluate.metrics import METRICS
from koala.evaluate.prompt_files import prompts_for
from koala.evaluate.settings import Settings
from koala.hardware.timing import device_name
from koala.models import measured
from koala.models.cards import ModelCard
from koala.models.library import Library
from koala.models.loaded import LoadedModel
from koala.models.registry import torch_only
from koala.request import GenerationRequest
from koala.sampling.generate import resolve, versions

Say = Callable[[str], None]


def judge_suite(model: LoadedModel, count: int, say: Say) -> dict:
    """How accurate the judge is on clean renders and after the model's VAE, and how faithful that VAE is."""
    torch_only(model.card, "the VAE's round trip")
    say(f"reading {count} scenes, clean and after the VAE's round trip")
    vae = model.pipeline.vae
    placement = model.place(resolve(GenerationRequest(model=model.card.name, prompt="scenes"), model.card))
    with model.lock:
        placement.enter("vae", model)
        return {
            "suite": "judge",
            "model": model.card.name,
            "judge": judge_accuracy.measure(num_scenes=count, vae=vae),
            "vae": judge_accuracy.vae_fidelity(vae, num_scenes=min(count, 200)),
        }


def _agreement(model: LoadedModel, settings: Settings, library: Library, say: Say) -> dict:
    teacher = library.get(settings.teacher)
    prompts = prompts_for(model, settings.prompts, settings.num_prompts, default=agreement.PROMPTS)
    return agreement.evaluate(model, teacher, [p.text for p in prompts], settings, say)


def _prompts(model: LoadedModel, settings: Settings, say: Say, folder: Path) -> dict:
    prompts = prompts_for(model, settings.prompts, settings.num_prompts, default=picture_folder.PROMPTS)
    return picture_folder.draw_folder(model, prompts, settings, folder, say)


def evaluate(
    suite: str, names: Sequence[str], settings: Settings, library: Library, say: Say, out: Path | None
) -> dict:
    """The report of a suite. `out` is the folder that the suite `prompts` fills."""
    if suite == "steps":
        return steps.evaluate(library.get_all(names), settings, library, say)
    model = library.get(names[0])
    if suite == "judge":
        return judge_suite(model, settings.num_prompts or 500, say)
    if suite == "agreement":
        return _agreement(model, settings, library, say)
    if suite == "prompts":
        return _prompts(model, settings, say, out)
    return METRICS[suite](settings, library, say).score(model)


def circumstances(
    arguments: list[str],
    device: torch.device,
    *,
    weights: Iterable[str | Path | ModelCard] | str,
    program: str = "koala",
) -> dict:
    """Command, device, versions, date and the weights' hashes of a measurement; `program` is the module that was run.

    `weights` are the measured models, or RANDOM or NONE of `measured`.
    """
    return {
        "command": shlex.join(["python", "-m", program, *arguments]),
        "device": device_name(device),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
        "weights": weights if isinstance(weights, str) else measured.weights(weights),
    }
