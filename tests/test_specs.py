"""Topology: exact parameter counts, the number of self-attention layers, and what a spec refuses."""

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel

from koala.registry import CARDS
from koala.specs import SPECS

SELF_ATTENTIONS = {"sdxl": 70, "koala-1b": 30, "koala-700m": 21}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_built_network_has_the_registered_number_of_parameters(spec):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**spec.config())
    built = sum(p.numel() for p in unet.parameters())
    cards = [c for c in CARDS.values() if c.spec is spec]
    assert cards
    assert {c.parameters for c in cards} == {built}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_self_attentions_are_exactly_the_networks_attn1_modules(spec):
    with torch.device("meta"):
        unet = UNet2DConditionModel(**spec.config())
    listed = [path for _, path in spec.self_attentions()]
    assert sorted(listed) == sorted(n for n, _ in unet.named_modules() if n.endswith(".attn1"))
    assert len(listed) == SELF_ATTENTIONS[spec.name.removeprefix("tiny-")]


def test_a_stage_of_unequal_depths_is_refused_by_name():
    odd = replace(SPECS["sdxl"], down_depths=((0, 0), (2, 1), (10, 10)))
    with pytest.raises(ValueError, match=r"differ in depth: \(2, 1\)"):
        odd.config()
