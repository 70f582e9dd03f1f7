"""Memory plans: the parts by arithmetic are the built ones, every tier fits its card, and nothing is given up early."""

import pytest
import torch
from diffusers import AutoencoderKL
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from koala.errors import UserError
from koala.hardware.memory_plan import GB, Plan, pair_plan, plan
from koala.unet.parts import SDXL_PARTS, TINY_PARTS, TextSpec, parts_of
from koala.unet.specs import KOALA_1B, KOALA_700M, SDXL, SPECS, TINY_SDXL

CARD = dict(device="cuda", width=1024, height=1024)


def tier(gigabytes: int, preset: str = "quality", *specs) -> Plan:
    return pair_plan(specs or (KOALA_700M,), **CARD, vram_bytes=gigabytes * GB, preset=preset)


def where(planned: Plan) -> tuple:
    return planned.text, planned.unet, planned.vae_tile


@pytest.mark.parametrize("parts", [SDXL_PARTS, TINY_PARTS], ids=["sdxl", "tiny"])
def test_parts_cost_what_the_built_ones_do(parts):
    def text(spec: TextSpec):
        return (CLIPTextModelWithProjection if spec.projection else CLIPTextModel)(CLIPTextConfig(**spec.config()))

    def cost(module: torch.nn.Module, call, *shape: int, dtype: torch.dtype) -> tuple[int, int]:
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            call(torch.zeros(*shape, dtype=dtype))
        return sum(p.numel() for p in module.parameters()), counter.get_total_flops()

    with torch.device("meta"):
        for spec in (parts.text, parts.text_2):
            encoder = text(spec)
            assert spec.cost == cost(encoder, encoder, 1, 77, dtype=torch.long)
        vae = AutoencoderKL(**parts.vae.config())
        assert parts.vae.parameters == sum(p.numel() for p in vae.parameters())
        for width, height in ((256, 256), (512, 320)):
            latents = (1, 4, height // 8, width // 8)
            assert (
                parts.vae.decoder(width=width, height=height)[1]
                == cost(vae, vae.decode, *latents, dtype=torch.float32)[1]
            )


def test_sdxl_parts_have_the_published_sizes():
    assert SDXL_PARTS.text_cost[0] == 123_060_480 + 694_659_840
    assert SDXL_PARTS.vae.parameters == 83_653_863
    assert round(SDXL_PARTS.vae.decoder(width=1024, height=1024)[1] / 1e12, 2) == 10.47


def test_every_spec_finds_its_parts():
    assert {name: parts_of(s) is TINY_PARTS for name, s in SPECS.items()} == {n: n.startswith("tiny") for n in SPECS}


@pytest.mark.parametrize(
    ("card", "placed", "gigabytes"),
    [
        (8, ("resident", "resident", None), 5.4),
        (6, ("resident", "resident", 64), 3.9),
        (4, ("released", "exchanged", 64), 2.2),
        (3, ("released", "swapped", None), 2.2),
    ],
)
def test_fast_tiers_give_up_pixels_before_time(card, placed, gigabytes):
    planned = tier(card, "fast")
    assert where(planned) == placed
    assert planned.predicted_peak_bytes / GB == pytest.approx(gigabytes, abs=0.05)


@pytest.mark.parametrize("card", [8, 6, 4, 3])
def test_quality_keeps_the_stock_pixels_of_koala_on_every_card(card):
    assert tier(card).vae_tile is None


def test_quality_tiles_when_nothing_else_fits():
    planned = pair_plan([KOALA_700M], device="cuda", vram_bytes=8 * GB, width=2048, height=2048)
    assert planned.vae_tile == 64
    assert "otherwise" in next(c.reason for c in planned.choices if c.what == "decoder")


def test_low_memory_takes_the_smallest_plan_on_a_large_card():
    planned = tier(80, "low-memory")
    assert where(planned) == ("released", "swapped", 64)
    assert planned.predicted_peak_bytes / GB == pytest.approx(1.95, abs=0.05)


@pytest.mark.parametrize("preset", ["quality", "fast", "low-memory"])
@pytest.mark.parametrize("card", [24, 12, 8, 7])
@pytest.mark.parametrize("specs", [(SDXL,), (SDXL, KOALA_700M)], ids=["sdxl", "pair"])
def test_no_plan_exceeds_its_budget(preset, card, specs):
    planned = tier(card, preset, *specs)
    assert planned.predicted_peak_bytes <= planned.budget_bytes < card * GB


def test_koala_beside_sdxl_fits_8_gb_and_names_the_price():
    pair = tier(8, "quality", SDXL, KOALA_700M)
    assert pair.text == "released" and pair.unet == "swapped"
    assert pair.on_device("unet") == ("unet",)
    assert pair.predicted_peak_bytes == tier(8, "quality", SDXL).predicted_peak_bytes  # the larger of the two
    assert pair.swap_ms > tier(8, "quality", SDXL).swap_ms > 0


def test_parts_on_the_device_follow_the_placement():
    exchanged = tier(4, "fast")
    assert [exchanged.on_device(s) for s in ("text", "unet", "vae")] == [("text",), ("unet", "vae"), ("unet", "vae")]
    assert tier(8).on_device("vae") == ("text", "unet", "vae")
    assert tier(8).swap_ms == 0


def test_a_vae_that_overflows_in_half_precision_decodes_in_float32():
    planned = plan(SDXL, **CARD, vram_bytes=24 * GB, vae_fp16_safe=False)
    assert (planned.dtype, planned.vae_dtype) == ("float16", "float32")


def test_a_small_decoder_is_used_by_the_preset_that_says_so():
    plans = {p: plan(KOALA_700M, **CARD, vram_bytes=8 * GB, preset=p, tiny_vae=True) for p in ("quality", "fast")}
    assert {name: p.tiny_vae for name, p in plans.items()} == {"quality": False, "fast": True}
    assert plans["fast"].predicted_peak_bytes < plans["quality"].predicted_peak_bytes


def test_a_cpu_computes_in_single_precision_until_memory_is_short():
    size = dict(device="cpu", width=256, height=256)
    assert plan(TINY_SDXL, **size, vram_bytes=None).dtype == "float32"
    assert pair_plan([SDXL, KOALA_700M], **size, vram_bytes=64 * GB).dtype == "float32"
    assert pair_plan([SDXL, KOALA_700M], **size, vram_bytes=16 * GB).dtype == "bfloat16"


def test_the_reason_for_a_precision_is_the_true_one():
    """Symptom: --dtype float16 on a CPU said that otherwise more memory would be needed than is free."""

    def reason(**settings) -> str:
        planned = pair_plan((TINY_SDXL,), device="cpu", width=256, height=256, **settings)
        return next(c.reason for c in planned.choices if c.what == "precision")

    assert reason(vram_bytes=64 * GB, dtype="float16", dtype_asked=True) == "as was asked for"
    assert reason(vram_bytes=None, dtype="bfloat16", dtype_asked=True) == "as was asked for"
    assert "slower in half precision" in reason(vram_bytes=64 * GB, dtype="float32")
    assert "so it was loaded" in reason(vram_bytes=64 * GB, dtype="bfloat16")
    least = pair_plan((SDXL,), device="cpu", vram_bytes=None, dtype="bfloat16", width=1024, height=1024)
    tight = int(least.predicted_peak_bytes / 0.9) + GB
    planned = pair_plan((SDXL,), device="cpu", vram_bytes=tight, dtype="bfloat16", width=1024, height=1024)
    assert planned.choices[0].reason.startswith("otherwise ")


def test_too_big_names_the_size_that_fits():
    with pytest.raises(UserError, match=r"2048x2048 px, 4 pictures at once takes .* GB at the least, and of 3\.0 GB"):
        pair_plan([KOALA_700M], device="cuda", vram_bytes=3 * GB, width=2048, height=2048, images=4)
    with pytest.raises(UserError, match="this fits with 2.2 GB: --width 1024 --height 1024 --images 1"):
        pair_plan([KOALA_700M], device="cuda", vram_bytes=3 * GB, width=2048, height=2048)
    with pytest.raises(UserError, match="it needs 7 GB of memory or a smaller model"):
        tier(6, "quality", SDXL)
    assert tier(7, "quality", SDXL)
    assert tier(8, "fast", KOALA_1B)


def test_without_a_limit_all_stays_on_the_device():
    planned = plan(SDXL, **CARD, vram_bytes=None)
    assert where(planned) == ("resident", "resident", None) and planned.budget_bytes is None
