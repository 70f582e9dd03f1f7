"""On a CUDA GPU: what tests/gpu/test_rehearsed.py rehearses, against the allocator; and compiled blocks."""

import dataclasses

import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel

from koala.distill.config import DistillConfig
from koala.errors import UserError
from koala.hardware.cuda import Cards, cards, in_place
from koala.models.library import Library
from koala.models.random_weights import random_library
from koala.request import GenerationRequest
from koala.sampling.generate import generate
from recipes.measure.gpu_rehearsal import HALF, SINGLE, TRAINING
from recipes.rehearsal.cases import Case, cases, drawn
from recipes.rehearsal.distillation import STAGES, estimated, steps

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.fixture(autouse=True)
def card():
    if not cards().available():
        pytest.skip("no CUDA GPU here")
    cards().empty_cache()


class Highest(Cards):
    """The machine's cards, and the highest peak of all runs: each run begins to count anew."""

    highest = 0

    def reset_peak(self, device=None):
        self.highest = max(self.highest, self.peak(device))
        super().reset_peak(device)


def library_for(case: Case) -> Library:
    """Plans for the case's card, on the one that is here; of several cards for the one that the case names."""
    device, size = torch.device("cuda", len(case.beside)), case.card.total_bytes
    if cards().count() <= len(case.beside):
        pytest.skip("a single card is visible")
    if cards().memory(device)[0] < size:
        pytest.skip(f"less than {size / 1e9:.0f} GB are free")
    return random_library(str(device), memory=size)


@pytest.mark.parametrize(
    "case", [c for c in cases() if c.kind == "cuda"], ids=lambda c: f"{c.name}, {' and '.join(c.models)}, {c.card.name}"
)
def test_a_plan_keeps_what_it_predicts(case):
    library = library_for(case)
    cards().reset_peak(library.device)
    counting = Highest()
    with in_place(counting):
        try:
            plan = (case.draw or drawn)(case, library)
        except UserError as error:
            assert "GB at the least" in str(error)
            return
        if case.again:
            case.again(case, library)
        counting.reset_peak(library.device)
    peak = counting.highest
    print(
        f"peak {peak / 1e9:.2f}, predicted {plan.predicted_peak_bytes / 1e9:.2f}, live {plan.live_peak_bytes / 1e9:.2f}"
    )
    assert peak <= plan.budget_bytes
    assert peak == pytest.approx(plan.predicted_peak_bytes, rel=0.25)


@pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])
@pytest.mark.parametrize("settings", [HALF, SINGLE], ids=["bf16", "fp32"])
def test_a_step_of_distillation_takes_what_is_estimated(settings, checkpointing):
    config = DistillConfig(**TRAINING.to_dict() | settings | {"gradient_checkpointing": checkpointing})
    predicted = max(estimated(config)[stage] for stage in STAGES)
    if cards().memory()[0] < 1.1 * predicted:
        pytest.skip(f"less than {1.1 * predicted / 1e9:.0f} GB are free")
    library = random_library("cuda")

    def network(spec, dtype):
        return library._random(lambda: UNet2DConditionModel(**spec.config()), getattr(torch, dtype)).to("cuda")

    for _ in steps(config, network=network, begins=lambda stage: None, autocast="cuda"):
        cards().reset_peak()
    peak = cards().peak()
    print(f"peak {peak / 1e9:.2f}, predicted {predicted / 1e9:.2f}")
    assert peak == pytest.approx(predicted, rel=0.25)


def test_compiled_blocks_leave_the_quality_preset_alone():
    model = Library("cuda").get("tiny-koala-700m")
    asked = GenerationRequest(model="tiny-koala-700m", prompt="a red circle", steps=4)
    before = generate(asked, model)
    generate(dataclasses.replace(asked, preset="fast"), model)
    assert any(m._compiled_call_impl for m in model.pipeline.unet.modules())
    assert np.array_equal(np.asarray(before.images[0]), np.asarray(generate(asked, model).images[0]))
