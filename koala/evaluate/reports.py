"""Evaluation suites by name, and the circumstances that belong beside every figure."""

import datetime
from collections.abc import Callable

from koala.evaluate import judge_accuracy, shapes
from koala.generate import versions
from koala.loading import LoadedModel
from koala.timing import device_name


def shapes_suite(model: LoadedModel, count: int, say: Callable[[str], None]) -> dict:
    return shapes.evaluate(model, count=count, on_batch=lambda suite, done, total: say(f"{suite}: {done} of {total}"))


def judge_suite(model: LoadedModel, count: int, say: Callable[[str], None]) -> dict:
    """How exact the judge is on clean renders and after the model's VAE, and how true that VAE is."""
    say(f"reading {count} scenes, clean and after the VAE's round trip")
    vae = model.pipeline.vae
    return {
        "suite": "judge",
        "model": model.card.name,
        "judge": judge_accuracy.measure(num_scenes=count, vae=vae),
        "vae": judge_accuracy.vae_fidelity(vae, num_scenes=min(count, 200)),
    }


SUITES = {"shapes": shapes_suite, "judge": judge_suite}


def circumstances(arguments: list[str], model: LoadedModel) -> dict:
    """Command, device, versions and date of a measurement."""
    return {
        "command": " ".join(["python -m koala", *arguments]),
        "device": device_name(model.device),
        "versions": versions(),
        "date": datetime.date.today().isoformat(),
    }
