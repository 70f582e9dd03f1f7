"""On a CUDA GPU: memory plans against the allocator, one U-Net at a time, compiled blocks beside untouched pixels."""

import dataclasses

import numpy as np
import pytest

from koala.compare import compare
from koala.generate import generate
from koala.loading import Library
from koala.random_weights import RandomLibrary
from koala.request import GenerationRequest

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


def request(name, **change):
    return GenerationRequest(**dict(model=name, prompt="a koala", steps=2, width=1024, height=1024) | change)


@pytest.mark.parametrize("vram", [8, 6, 4, 3])
def test_a_plan_keeps_what_it_predicts(vram):
    model = RandomLibrary("cuda", memory=vram * 10**9).get("koala-700m")
    result = generate(request("koala-700m"), model)
    peak, plan = result.timing.peak_memory_bytes, result.plan
    print(
        f"{vram} GB: peak {peak / 1e9:.2f}, predicted {plan.predicted_peak_bytes / 1e9:.2f}, {plan.text}, {plan.unet}"
    )
    assert peak <= plan.budget_bytes
    assert peak == pytest.approx(plan.predicted_peak_bytes, rel=0.25)


def test_koala_stands_beside_sdxl_on_8_gb():
    library = RandomLibrary("cuda", memory=8 * 10**9)
    results = compare([request("sdxl-base"), request("koala-700m")], library)
    for result in results:
        assert result.timing.peak_memory_bytes <= result.plan.budget_bytes
        assert result.timing.swap_ms > 0
    assert results[0].plan.unet != "resident"


def test_compiled_blocks_leave_the_quality_preset_alone():
    model = Library("cuda").get("tiny-koala-700m")
    asked = GenerationRequest(model="tiny-koala-700m", prompt="a red circle", steps=4)
    before = generate(asked, model)
    generate(dataclasses.replace(asked, preset="fast"), model)
    assert any(m._compiled_call_impl for m in model.pipeline.unet.modules())
    assert np.array_equal(np.asarray(before.images[0]), np.asarray(generate(asked, model).images[0]))
