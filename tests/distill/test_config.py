"""A config says what is wrong with it before anything runs."""

import dataclasses
import json
import re

import pytest

from koala.distill.config import DistillConfig
from koala.distill.presets import PRESETS
from koala.distill.settings import read
from koala.errors import UserError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lerning_rate": 1}, "no field 'lerning_rate' .*; did you mean learning_rate?"),
        ({"num_steps": "many"}, "num_steps must be a whole number, not 'many'"),
        ({"num_steps": True}, "num_steps must be a whole number"),
        ({"lf_at_ends": 1}, "lf_at_ends must be true or false"),
        ({"features": "SA"}, "features must be a list of words"),
        ({"num_steps": 0}, "num_steps must be 1 or more"),
        ({"precision": "fp8"}, "precision must be one of fp32, bf16, fp16"),
        ({"batch_size": 10, "accumulation": 3}, "10 cannot be split into 3 passes"),
        ({"resolution": 100}, "resolution must be a multiple of 32 px"),
        ({"ema_decay": 1.0}, "ema_decay must lie between 0 and 1"),
        ({"empty_prompts": 1.0}, "empty_prompts is a share"),
        ({"trackers": ["mlflow"]}, "unknown tracker 'mlflow'; there are tensorboard, wandb"),
        ({"optimizer": "muon", "precision": "fp16"}, "choose precision=bf16 or fp32"),
        ({"task_weight": 0, "output_weight": 0, "feature_weight": 0}, "every term of the loss is off"),
    ],
)
def test_a_value_that_cannot_work_is_refused_with_its_remedy(values, message):
    with pytest.raises(UserError, match=message):
        DistillConfig.from_dict(values)


def test_a_file_and_settings_lie_over_a_preset(tmp_path):
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"num_steps": 7, "features": ["SA", "CA"]}))
    config = read(file, ["batch_size=4", "stages=UP-1,UP-2", "lf_at_ends=false"], PRESETS["2-minutes"].config)
    assert (config.num_steps, config.batch_size, config.lf_at_ends) == (7, 4, False)
    assert config.features == ("SA", "CA") and config.stages == ("UP-1", "UP-2")
    assert config.optimizer == PRESETS["2-minutes"].config.optimizer


def test_a_config_is_read_back_as_it_was_written():
    config = PRESETS["10-minutes"].config
    assert DistillConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [("{", "is damaged"), ("[1]", "it holds a list, not an object"), (None, "there is no config")],
)
def test_a_file_that_is_no_config_is_refused(tmp_path, text, message):
    file = tmp_path / "config.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(UserError, match=message):
        read(file)


def test_a_setting_without_a_value_is_refused():
    with pytest.raises(UserError, match="'batch_size' is not a setting; write field=value"):
        read(None, ["batch_size"])


def test_the_help_of_every_field_is_a_sentence_and_the_defaults_are_the_papers():
    fields = dataclasses.fields(DistillConfig)
    sentence = re.compile(r"[A-Z].* .* .*\.")
    assert [f.name for f in fields if not sentence.fullmatch(f.metadata["help"])] == []
    config = DistillConfig()
    assert (config.batch_size, config.learning_rate, config.num_steps) == (128, 1e-5, 500_000)
    assert config.features == ("SA",) and config.lf_at_ends and config.sa_mapping == "bottom"


def test_one_setting_is_one_validation_prompt_and_may_be_repeated(tmp_path):
    """Symptom: a prompt with a comma was drawn as two."""
    first, second = "a red circle, left of a blue square", "a star"
    asked = [f"validation_prompts={first}", f"validation_prompts={second}"]
    assert read(None, asked[:1]).validation_prompts == (first,)
    assert read(None, asked).validation_prompts == (first, second)
    assert read(None, [f"validation_prompts={json.dumps([first, second])}"]).validation_prompts == (first, second)
    file = tmp_path / "config.json"
    file.write_text(json.dumps({"validation_prompts": ["a triangle"]}))
    assert read(file, asked).validation_prompts == (first, second)  # the command line replaces the file's
    assert read(None, ["stages=UP-1,DW-2"]).stages == ("UP-1", "DW-2")
    with pytest.raises(UserError, match="is not a JSON list") as output:
        read(None, ["validation_prompts=[a star]"])
    remedy = str(output.value).rpartition("; write ")[2]
    assert read(None, [remedy]).validation_prompts == ("[a star]",)
