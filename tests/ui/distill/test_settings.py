"""Every setting of a distillation is on the page and means what it says."""

import dataclasses
import html
import re
import shlex

import pytest

from koala.cli.main import parser
from koala.distill.config import DistillConfig
from koala.distill.presets import PRESETS
from koala.distill.run.records import Status
from koala.distill.settings import read
from koala.errors import UserError
from koala.ui.distill import fields as distill_fields
from koala.ui.distill import panel as distill_panel
from koala.ui.distill.curves import Metrics
from tests.ui.distill.conftest import QUICK, written


def test_every_field_of_a_config_is_on_the_page_with_its_help(tab):
    assert set(tab.fields) == {f.name for f in dataclasses.fields(DistillConfig)}
    for field in dataclasses.fields(DistillConfig):
        assert tab.fields[field.name].info == field.metadata["help"]
    labels = [component.label for component in tab.fields.values()]
    assert len(set(labels)) == len(labels) and "Min SNR gamma" in labels


@pytest.mark.parametrize("config", [p.config for p in PRESETS.values()], ids=list(PRESETS))
def test_what_the_page_shows_of_a_config_is_that_config(config):
    names = list(distill_fields.FIELDS)
    values = dict(zip(names, distill_fields.shown(config, names), strict=True))
    assert distill_fields.read(DistillConfig(), values) == config


@pytest.mark.parametrize(
    ("name", "value", "problem"),
    [
        ("num_steps", None, "num_steps must be a whole number"),
        ("num_steps", 0, "num_steps must be 1 or more"),
        ("features", ["SB"], "the features are SA, CA, FFN, Res, LF"),
        ("learning_rate", 0, "learning rate must be above 0"),
        ("captions", "long", "captions must be one of short, detailed, mixed"),
    ],
)
def test_a_setting_that_cannot_work_is_named(name, value, problem):
    with pytest.raises(UserError, match=problem):
        distill_fields.read(QUICK, {name: value})


def test_prompts_are_lines_and_a_feature_may_name_its_stage():
    config = distill_fields.read(QUICK, {"validation_prompts": "a red, circle\n\n a star ", "features": ["LF@UP-3"]})
    assert config.validation_prompts == ("a red, circle", "a star") and config.features == ("LF@UP-3",)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_command_for_a_terminal_is_the_same_run(tmp_path, preset):
    changes = {"seed": 7, "learning_rate": 2e-5, "gradient_checkpointing": True}
    own = PRESETS[preset].config
    changes |= {"features": ("SA", "LF@UP-3")} if own.method == "koala" else {"teacher_steps": 5}
    config = dataclasses.replace(own, validation_prompts=("a, b", "c"), **changes)
    shown = distill_panel.Shown(
        run=written(tmp_path, "a-1", config), status=Status(state="done", step=1, num_steps=1), metrics=Metrics(),
        config=config,
    )  # fmt: skip
    panel = distill_panel.about(shown, list(PRESETS.values()))
    command = html.unescape(re.search("<code>(.*)</code>", panel)[1])
    args = parser().parse_args(shlex.split(command)[3:])
    assert read(args.config, args.settings, PRESETS[args.preset].config) == config
    assert args.preset == preset


def test_a_preset_fills_every_field(tab):
    description, *values = tab.fill("10-minutes")
    config = distill_fields.read(DistillConfig(), dict(zip(tab.fields, values, strict=True)))
    assert config == PRESETS["10-minutes"].config and PRESETS["10-minutes"].text in description


def test_an_earlier_runs_settings_come_back(tab):
    config = dataclasses.replace(QUICK, seed=41, captions="short")
    written(tab.runs.root, "old-1", config)
    preset, _, *values = tab.take("old-1")
    assert preset is None
    assert distill_fields.read(DistillConfig(), dict(zip(tab.fields, values, strict=True))) == config
