"""Parameters and FLOPs by arithmetic equal those of the built network, and the published ones."""

import functools

import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.utils.flop_counter import FlopCounterMode

from koala.unet.costs import blocks, by_stage, flops, parameters
from koala.unet.specs import SDXL, SPECS, STAGES, TINY_SDXL, UNetSpec, student

PUBLISHED = {
    "sdxl": 2_567_463_684,
    "koala-1b": 1_161_184_324,
    "koala-700m": 782_822_724,
    "bk-sdxl": 1_717_277_764,
    "ssd-1b": 1_331_334_404,
    "segmind-vega": 745_225_604,
}
UNEVEN = student("0,1+2,3+3/3/3+2+1,1+1+2,0+0", TINY_SDXL)  # one residual block in DW-1, depths that differ


@functools.cache
def on_meta(spec: UNetSpec) -> UNet2DConditionModel:
    with torch.device("meta"):
        return UNet2DConditionModel(**spec.config())


def measured_flops(unet: UNet2DConditionModel, spec: UNetSpec, width: int, height: int, batch: int) -> int:
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(
            torch.empty(batch, 4, height // 8, width // 8),
            torch.empty(batch),
            torch.empty(batch, 77, spec.cross_attention_dim),
            added_cond_kwargs={"text_embeds": torch.empty(batch, spec.pooled_dim), "time_ids": torch.empty(batch, 6)},
        )
    return counter.get_total_flops()


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_are_the_published_ones(name):
    assert parameters(SPECS[name]) == PUBLISHED[name]


@pytest.mark.parametrize("spec", [*SPECS.values(), UNEVEN], ids=lambda s: s.name)
def test_costs_equal_the_built_network(spec):
    unet = on_meta(spec)
    stages = by_stage(spec, width=256, height=256)
    assert parameters(spec) == sum(p.numel() for p in unet.parameters())
    for stage in spec.depths():
        assert stages[stage][0] == sum(p.numel() for p in unet.get_submodule(STAGES[stage]).parameters())
    for width, height, batch in ((320, 192, 2), (256, 256, 1))[: 1 if parameters(spec) > 10**8 else 2]:
        assert flops(spec, width=width, height=height, batch=batch) == measured_flops(unet, spec, width, height, batch)


def test_every_block_is_a_module_of_its_own():
    unet = on_meta(SDXL)
    result = list(blocks(SDXL, width=1024, height=1024))
    for block in result:
        assert block.parameters == sum(p.numel() for p in unet.get_submodule(block.path).parameters()), block.path
    assert len({b.path for b in result}) == len(result)


@pytest.mark.parametrize(("name", "teraflops"), [("sdxl", 6.76), ("koala-1b", 3.43), ("koala-700m", 2.70)])
def test_flops_at_1024_px(name, teraflops):
    assert round(flops(SPECS[name], width=1024, height=1024) / 1e12, 2) == teraflops
