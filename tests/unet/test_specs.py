"""Topology: exact parameter counts, the number of self-attention layers, and what a spec refuses."""

import inspect
import json

import pytest
from diffusers import UNet2DConditionModel

from koala.errors import UserError
from koala.models.cards import CARDS
from koala.unet import config as unet_config
from koala.unet.config import from_config
from koala.unet.costs import parameters
from koala.unet.specs import SPECS, student
from tests.unet.test_costs import on_meta

SELF_ATTENTIONS = {"sdxl": 70, "koala-1b": 30, "koala-700m": 21, "bk-sdxl": 46, "ssd-1b": 34, "segmind-vega": 15}


@pytest.mark.parametrize("card", [c for c in CARDS.values() if c.spec], ids=lambda c: c.name)
def test_registered_parameters_are_those_of_the_spec(card):
    assert card.parameters == parameters(card.spec)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_self_attentions_are_exactly_the_networks_attn1_modules(spec):
    unet = on_meta(spec)
    listed = [path for _, path in spec.self_attentions()]
    assert sorted(listed) == sorted(n for n, _ in unet.named_modules() if n.endswith(".attn1"))
    assert len(listed) == SELF_ATTENTIONS[spec.name.removeprefix("tiny-")]


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_a_built_networks_config_gives_its_spec_again(spec):
    unet = on_meta(spec)
    assert from_config(json.loads(unet.to_json_string()), "anything") == spec


def test_every_setting_of_diffusers_network_is_read_or_must_be_what_sdxl_has():
    output = inspect.signature(UNet2DConditionModel.__init__).parameters.keys() - {"self"}
    read = SPECS["ssd-1b"].config().keys() | unet_config._ALWAYS.keys() | unet_config._OTHERWISE_SO.keys()
    assert output - read == {
        "addition_embed_type_num_heads",  # of another kind of embedding
        "time_cond_proj_dim",  # koala.models.semantics
    }


@pytest.mark.parametrize("name", SELF_ATTENTIONS)
def test_a_student_is_named_or_spelt(name):
    assert student(name, SPECS["sdxl"]) == SPECS[name]
    assert student(SPECS[name].notation, SPECS["sdxl"]) == SPECS[name]
    assert student(name, SPECS["tiny-sdxl"]).channels == (16, 32, 64)


def test_a_students_name_on_the_tiny_teacher_is_the_tiny_student():
    assert student("koala-700m", SPECS["tiny-sdxl"]) is SPECS["tiny-koala-700m"]
    assert SPECS["koala-700m"].notation == "0,2,5/-/5+5,2+2,0+0"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("koala-2b", "give a name"),
        ("0,2,5/-/5+5,2+2", "is not a spec"),
        ("0,2,5/-/5,2,0", "UP-3 needs 2 residual blocks"),
        ("0,2,5/4/5+5,2+2,0+0", "as deep as DW-3's first block"),
        ("0+0,2+0,5/-/5+5,2+2+2,0+0+0", "all have attention or none has"),
        ("0,2,-5/-/5+5,2+2,0+0", "0 or more"),
    ],
)
def test_a_spec_that_cannot_be_says_why(text, says):
    with pytest.raises(UserError, match=says):
        student(text, SPECS["sdxl"])


def test_a_config_of_another_family_is_refused():
    with pytest.raises(UserError, match="addition_embed_type is None"):
        from_config({"cross_attention_dim": 768}, "sd-1.5")
