"""Warnings of diffusers and transformers are muted for people: each that concerns a picture has an answer of ours.

The table is compared with the installed libraries: a warning that a new version adds fails here until it has one.
"""

import ast
import importlib.util
import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from koala.errors import UserError
from koala.files.tensorfiles import stored_tensors
from koala.models.networks import read_network
from koala.models.reading import load_noising

STUDENT = "tiny-koala-700m"
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
READ = "said by koala.sampling.tokens: prompt, command line, JSON and PNG (tests/sampling/test_tokens.py)"
REFUSED = "refused by koala.models.reading.check_complete (tests/models/test_shipped.py)"
NEVER = "cannot occur"
# Module, function -> (how many warnings, the answer).
ANSWERS = {
    ("diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl", "encode_prompt"): (1, READ),
    ("transformers.tokenization_utils_base", "_eventual_warn_about_too_long_sequence"): (1, READ),
    ("diffusers.schedulers.scheduling_euler_discrete", "step"): (1, f"{NEVER}: the pipeline scales"),
    ("diffusers.schedulers.scheduling_euler_ancestral_discrete", "step"): (
        1,
        f"{NEVER}: the pipeline scales",
    ),
    ("diffusers.configuration_utils", "extract_init_dict"): (1, "a warning of ours: koala.models.reading.say_ignored"),
    ("diffusers.models.modeling_utils", "_load_pretrained_model"): (3, REFUSED),
    ("transformers.utils.loading_report", "log_state_dict_report"): (1, REFUSED),
    ("diffusers.models.modeling_utils", "from_pretrained"): (
        5,
        f"{NEVER}: a torch.dtype is given, accelerate is required, only safetensors are located, FlashPack is not used",
    ),
    ("diffusers.models.modeling_utils", "to"): (
        2,
        f"{NEVER}: SDXL has no module for float32 alone, nothing is offloaded",
    ),
    ("diffusers.utils.peft_utils", "apply_lora_scale"): (1, f"{NEVER}: no `scale` is passed"),
    ("diffusers.models.attention", "BasicTransformerBlock.forward"): (1, f"{NEVER}: no `scale` is passed"),
}


def warnings_of(module: str) -> Counter:
    """Function -> calls of logger.warning in it."""
    result = Counter()

    def walk(node: ast.AST, names: tuple[str, ...]) -> None:
        for child in ast.iter_child_nodes(node):
            inside = (*names, child.name) if isinstance(child, ast.FunctionDef | ast.ClassDef) else names
            if isinstance(child, ast.Call) and ast.unparse(child.func) in ("logger.warning", "logger.warning_once"):
                result[".".join(names)] += 1
            walk(child, inside)

    walk(ast.parse(Path(importlib.util.find_spec(module).origin).read_text(encoding="utf-8")), ())
    return result


@pytest.mark.parametrize("place", ANSWERS, ids=lambda place: f"{place[0]}.{place[1]}")
def test_every_muted_warning_of_the_table_is_where_it_was(place):
    module, function = place
    count, answer = ANSWERS[place]
    result = warnings_of(module)
    inside = sum(n for name, n in result.items() if re.search(rf"(^|\.){re.escape(function)}(\.|$)", name))
    assert inside == count, f"{module}.{function} warns {inside} times, the table says {count}: {answer}"


@pytest.mark.parametrize(
    "module",
    [
        "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl",
        "diffusers.schedulers.scheduling_euler_discrete",
        "diffusers.schedulers.scheduling_euler_ancestral_discrete",
        "diffusers.schedulers.scheduling_ddim",
        "diffusers.schedulers.scheduling_dpmsolver_multistep",
        "diffusers.configuration_utils",
        "diffusers.models.unets.unet_2d_condition",
        "diffusers.models.autoencoders.autoencoder_kl",
        "diffusers.models.autoencoders.autoencoder_tiny",
        "diffusers.models.autoencoders.vae",
        "diffusers.image_processor",
        "transformers.models.clip.modeling_clip",
    ],
)
def test_no_module_of_a_pictures_way_warns_of_anything_else(module):
    known = [function for place, function in ANSWERS if place == module]
    strange = [name for name in warnings_of(module) if name.split(".")[-1] not in known]
    assert not strange, f"{module} warns in {strange}: find out what of, and answer it in ANSWERS"


def configured(file: Path, **values) -> Path:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))
    return file


def test_settings_that_diffusers_does_not_know_are_said(embedded, tmp_path, caplog):
    scheduler, vae = (shutil.copytree(embedded / STUDENT / part, tmp_path / part) for part in ("scheduler", "vae"))
    file = configured(scheduler / "scheduler_config.json", shift=3.0)
    load_noising(scheduler)
    assert f"{file} says shift, which is unknown to EulerDiscreteScheduler and has no effect" in caplog.text
    file = configured(vae / "config.json", whitening="twice")
    read_network("vae", vae, stored_tensors(vae / "diffusion_pytorch_model.safetensors"), torch.float32)
    assert f"{file} says whitening, which is unknown to AutoencoderKL and has no effect" in caplog.text
    caplog.clear()
    load_noising(embedded / STUDENT / "scheduler")
    assert not caplog.records


def test_a_scheduler_of_another_kind_of_noise_is_refused(embedded, tmp_path):
    """diffusers takes its config without a word."""
    folder = shutil.copytree(embedded / STUDENT / "scheduler", tmp_path / "scheduler")
    configured(folder / "scheduler_config.json", _class_name="FlowMatchEulerDiscreteScheduler", shift=3.0)
    with pytest.raises(UserError, match="is for FlowMatchEulerDiscreteScheduler.*euler-trailing"):
        load_noising(folder)
