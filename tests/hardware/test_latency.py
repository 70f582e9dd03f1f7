"""The three constants per card give back the published times, and the arithmetic counts every call once."""

import pytest

from koala.hardware.latency import GPUS, HARDWARE, named, predict
from koala.unet.specs import KOALA_1B, KOALA_700M, SDXL, SPECS, SSD_1B, TINY_KOALA_700M, VEGA

# KOALA, figure 7: seconds at 1024 px, and at 512 px for the Turbo models; float16, guided, one picture.
STEPS = {KOALA_700M: 10, KOALA_1B: 10, SDXL: 25, SSD_1B: 25, VEGA: 25}
FIGURE = {
    "rtx-3060-ti": {(KOALA_700M, 1024): 2.88, (KOALA_1B, 1024): 3.53, (VEGA, 1024): 6.75}
    | {(KOALA_700M, 512): 0.74, (KOALA_1B, 512): 0.92},
    "rtx-2080-ti": {(KOALA_700M, 1024): 1.94, (KOALA_1B, 1024): 2.33, (SDXL, 1024): 9.65}
    | {(SSD_1B, 1024): 6.34, (VEGA, 1024): 4.52, (KOALA_700M, 512): 0.54, (KOALA_1B, 512): 0.66},
    "rtx-4090": {(KOALA_700M, 1024): 0.66, (KOALA_1B, 1024): 0.79, (SDXL, 1024): 3.23}
    | {(SSD_1B, 1024): 2.09, (VEGA, 1024): 1.49, (KOALA_700M, 512): 0.19, (KOALA_1B, 512): 0.24},
}
CELLS = [
    pytest.param(card, spec, side, seconds, id=f"{card}-{spec.name}-{side}")
    for card, rows in FIGURE.items()
    for (spec, side), seconds in rows.items()
]
JOB = dict(width=1024, height=1024, steps=10, guided=True)


@pytest.mark.parametrize(("card", "spec", "side", "seconds"), CELLS)
def test_the_papers_latency_figure(card, spec, side, seconds):
    result = predict(spec, GPUS[card], width=side, height=side, steps=STEPS[spec], guided=True)
    assert result.total_ms / 1000 == pytest.approx(seconds, rel=0.06)


@pytest.mark.parametrize(
    ("card", "spec", "seconds"),
    [("a100", SDXL, 3.32), ("a100", SSD_1B, 2.25), ("a10", SDXL, 9.40), ("h100", SDXL, 2.50)],
)
def test_published_times_of_thirty_steps(card, spec, seconds):
    result = predict(spec, GPUS[card], width=1024, height=1024, steps=30, guided=True)
    assert result.total_ms / 1000 == pytest.approx(seconds, rel=0.05)


def test_sdxl_turbo_on_a_desktop_cpu():
    result = predict(SDXL, HARDWARE["core-i7-12700"], width=512, height=512, steps=1, guided=False)
    assert result.total_ms / 1000 == pytest.approx(10, rel=0.05)


@pytest.mark.parametrize("hardware", HARDWARE.values(), ids=HARDWARE)
def test_no_device_is_faster_than_its_data_sheet(hardware):
    assert 0 < hardware.vae <= hardware.unet * 1.05 and hardware.unet < hardware.peak


def test_guidance_doubles_a_step_but_for_its_fixed_part():
    card = GPUS["rtx-4090"]
    guided, plain = (predict(KOALA_700M, card, **JOB | {"guided": g}) for g in (True, False))
    fixed = 21 * card.block_ms
    assert guided.unet_ms[0] - fixed == pytest.approx(2 * (plain.unet_ms[0] - fixed))
    assert guided.vae_ms == plain.vae_ms


def test_the_fast_preset_guides_half_of_the_steps_and_decodes_small():
    card = GPUS["rtx-4090"]
    quality, fast = (predict(KOALA_700M, card, **JOB, preset=p, tiny_vae=True) for p in ("quality", "fast"))
    assert len(set(quality.unet_ms)) == 1 and len(set(fast.unet_ms)) == 2
    assert fast.vae_ms < quality.vae_ms / 10
    assert fast.total_ms < quality.total_ms / 1.5


def test_a_batch_costs_its_pictures():
    card = GPUS["h100"]
    one, four = (predict(SDXL, card, **JOB, images=n) for n in (1, 4))
    assert four.vae_ms == pytest.approx(4 * one.vae_ms)
    assert one.unet_total_ms < four.unet_total_ms < 4 * one.unet_total_ms


def test_small_models_and_every_spec():
    card = GPUS["rtx-4090"]
    times = {s.name: predict(s, card, **JOB | {"width": 256, "height": 256}).total_ms for s in SPECS.values()}
    assert times["koala-700m"] < times["koala-1b"] < times["bk-sdxl"] < times["sdxl"]
    tiny = predict(TINY_KOALA_700M, card, **JOB | {"width": 256, "height": 256})
    assert tiny.unet_ms[0] == pytest.approx(21 * card.block_ms, rel=0.2)  # a GPU launches kernels, and waits for that


@pytest.mark.parametrize(
    ("driver", "key"),
    [
        ("NVIDIA GeForce RTX 4090", "rtx-4090"),
        ("NVIDIA GeForce RTX 3060 Ti", "rtx-3060-ti"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100 80GB PCIe", "a100"),
        ("NVIDIA A10", "a10"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA A10G", None),
        ("NVIDIA RTX A1000", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 4080 SUPER", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 3060", None),
    ],
)
def test_drivers_names_mean_the_right_card(driver, key):
    assert named(driver) is (GPUS[key] if key else None)
