"""Which U-Net a LoRA was trained on, and which scale its settings give it: told, assumed aloud, or refused."""

import json
import re
import shlex

import pytest
import torch
from safetensors.torch import save_file

from koala.cli.main import main
from koala.errors import UserError
from koala.hardware.memory_plan import GB, pair_plan
from koala.lora.formulas import change
from koala.lora.moving import changed_parameters, layers_for, remap_file
from koala.request import GenerationRequest
from koala.sampling.generate import generate
from koala.unet.layer_map import renamed
from koala.unet.original_layout import original_names
from koala.unet.specs import KOALA_700M, TINY_KOALA_700M, TINY_SDXL

QUERY = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"  # 32 x 32
LAST = "up_blocks.0.attentions.1.transformer_blocks.0.attn1.to_q"  # of the student; 64 x 64, the teacher's is another
NORM = "down_blocks.1.resnets.0.norm1"


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


def peft(*modules, before="unet."):
    tensors = {}
    for module in modules:
        width = 64 if module.startswith("up_blocks.0") else 32
        tensors[f"{before}{module}.lora_A.weight"] = random(2, width)
        tensors[f"{before}{module}.lora_B.weight"] = random(width, 2)
    return tensors


def saved(file, tensors, **settings):
    save_file(tensors, file, metadata={"lora_adapter_metadata": json.dumps(settings)} if settings else None)
    return file


def delta_of(file, module, spec=TINY_SDXL):
    width = 64 if module.startswith("up_blocks.0") else 32
    return change(layers_for(file, spec)[0][module], torch.zeros(width, width))


@pytest.mark.parametrize("before", ["", "unet."])
@pytest.mark.parametrize("prefix", ["", "unet."])
def test_a_scale_counts_however_its_settings_are_named(tmp_path, before, prefix):
    """Symptom: a file of unet.save_lora_adapter, whose settings name no component, had a quarter of its scale."""
    file = saved(tmp_path / "l.safetensors", peft(QUERY, before=before), **{f"{prefix}r": 2, f"{prefix}lora_alpha": 8})
    exact = 4 * random(32, 2).double() @ random(2, 32).double()
    assert (delta_of(file, QUERY) - exact).abs().max() <= 1e-6 * exact.abs().max()


def test_pefts_other_adapters_are_refused_for_their_scale_is_reckoned_in_other_ways(tmp_path):
    parts = {"hada_w1_a": (32, 2), "hada_w1_b": (2, 32), "hada_w2_a": (32, 2), "hada_w2_b": (2, 32)}
    file = tmp_path / "adapter_model.safetensors"
    save_file({f"base_model.model.{QUERY}.{role}": random(*shape) for role, shape in parts.items()}, file)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LOHA", "r": 2, "alpha": 8}))
    with pytest.raises(UserError, match="is peft's 'LOHA', whose scale is not known here"):
        layers_for(file, TINY_SDXL)


def test_a_scale_that_is_taken_for_granted_is_said_and_the_remedy_works(tmp_path):
    file = saved(tmp_path / "l.safetensors", peft(QUERY, before="base_model.model."))
    assert "adapter_config.json, which has its alpha, is not next to it" in layers_for(file, TINY_SDXL)[1].summary
    before = delta_of(file, QUERY)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 2, "lora_alpha": 4}))
    assert torch.equal(delta_of(file, QUERY), 2 * before) and not layers_for(file, TINY_SDXL)[1].notes


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int32, torch.complex64], ids=str)
def test_a_quantisers_codes_and_complex_numbers_are_no_factors(tmp_path, dtype):
    """A quantised file was drawn as if its integers were the factors: ten thousand times too strong."""
    file = saved(tmp_path / "l.safetensors", {k: (10 * t.abs()).to(dtype) for k, t in peft(QUERY).items()})
    kind = str(dtype).removeprefix("torch.")
    with pytest.raises(UserError, match=f"lora_A.weight in .* is of {kind}, and a LoRA is of floats"):
        layers_for(file, TINY_SDXL)


@pytest.mark.parametrize("alpha", [0.6, 1.0])
def test_a_moved_lora_in_half_precision_is_the_same_lora(tmp_path, alpha):
    """Its scale went into a factor, which was rounded: 3e-4 of the change."""
    half = {key: tensor.half() for key, tensor in peft(QUERY).items()}
    file = saved(tmp_path / "l.safetensors", half, **{"unet.r": 2, "unet.lora_alpha": alpha})
    moved = [tmp_path / "kohya.safetensors"]
    remap_file(file, "koala-700m", moved[0])
    if alpha == 1:  # a half is exact, so peft's names can say it too
        moved.append(tmp_path / "peft.safetensors")
        remap_file(file, "koala-700m", moved[1], names="peft")
    else:
        with pytest.raises(UserError, match="its scale of 0.3 would be rounded; use --names kohya"):
            remap_file(file, "koala-700m", tmp_path / "peft.safetensors", names="peft")
    before, *after = (delta_of(f, QUERY, TINY_KOALA_700M) for f in (file, *moved))
    assert before.abs().max() > 0.1
    assert all((before - one).abs().max() <= 1e-7 * before.abs().max() for one in after)


def test_the_difference_of_a_norm_is_read_in_either_spelling(tmp_path):
    name, file = f"lora_unet_{NORM.replace('.', '_')}", tmp_path / "l.safetensors"
    save_file({f"{name}.diff": random(16), f"{name}.diff_b": -random(16)} | peft(QUERY), file)
    layers, _ = layers_for(file, TINY_SDXL)
    assert torch.equal(layers[NORM]["w_norm"], random(16)) and torch.equal(layers[NORM]["b_norm"], -random(16))


def test_a_students_own_lora_in_original_numbers_is_moved_by_the_command_too(tmp_path):
    """Symptom: refused as one of another architecture, though a run took it."""
    names, tensors = original_names(TINY_KOALA_700M), {}
    for module in (QUERY, LAST):
        name, width = f"lora_unet_{renamed(module, names).replace('.', '_')}", 64 if module == LAST else 32
        tensors |= {f"{name}.lora_down.weight": random(2, width), f"{name}.lora_up.weight": random(width, 2)}
    save_file(tensors, tmp_path / "l.safetensors")
    report = remap_file(tmp_path / "l.safetensors", "koala-700m", tmp_path / "moved.safetensors")
    assert (report.teacher, report.dropped, report.notes) == ("tiny-koala-700m", (), ())
    assert set(layers_for(tmp_path / "moved.safetensors", TINY_KOALA_700M)[0]) == {QUERY, LAST}


def test_a_students_lora_of_one_stage_is_its_own(tmp_path):
    """All that the student has in UP-1; the teacher's would have ten blocks in each transformer."""
    own = [path for stage, path in TINY_KOALA_700M.self_attentions() if stage == "UP-1"]
    file = saved(tmp_path / "l.safetensors", peft(*(f"{path}.to_q" for path in own)))
    layers, report = layers_for(file, TINY_KOALA_700M)
    assert set(layers) == {f"{path}.to_q" for path in own} and report.teacher == "tiny-koala-700m"
    assert not report.notes


def test_a_lora_that_could_be_either_s_is_the_teachers_aloud_and_the_remedy_works(tmp_path, monkeypatch, capsys):
    """Symptom: half of a student's LoRA was dropped without a word on whose it was taken for."""
    monkeypatch.chdir(tmp_path)
    file = saved(tmp_path / "FILE.safetensors", peft(QUERY, LAST))
    layers, report = layers_for(file, TINY_KOALA_700M)
    assert set(layers) == {QUERY} and "taken for a LoRA of tiny-sdxl" in report.summary
    command = re.search(r"python -m koala (lora .+\.safetensors) says so", report.summary)[1]
    assert main(shlex.split(command)) == 0
    layers, report = layers_for(tmp_path / "NEW.safetensors", TINY_KOALA_700M)
    assert set(layers) == {QUERY, LAST} and not report.notes
    teachers, report = layers_for(file, TINY_SDXL)
    assert set(teachers) == {QUERY, LAST} and not report.notes  # on the teacher there is no question
    _, report = layers_for(saved(file, peft(QUERY)), TINY_KOALA_700M)
    assert not report.notes  # the same layer in both


def test_the_memory_plan_counts_the_weights_that_a_lora_changes(library, tmp_path):
    file = saved(tmp_path / "l.safetensors", peft(QUERY))
    assert changed_parameters(file, TINY_KOALA_700M) == 32 * 32
    model = library.get("tiny-koala-700m")
    model.adapted.clear()
    plain = GenerationRequest(model="tiny-koala-700m", prompt="a star", steps=1, width=64, height=64)
    adapted = GenerationRequest(**plain.to_dict() | {"lora": str(file)})
    without, with_ = (generate(request, model).plan for request in (plain, adapted))
    copies = {"cpu": 1, "cuda": 0, "mps": 2}[model.device.type]
    size = 32 * 32 * model.dtype.itemsize
    assert with_.predicted_peak_bytes - without.predicted_peak_bytes == copies * size
    assert [choice.what for choice in with_.choices if choice.what == "LoRA"] == ["LoRA"]
    waiting = generate(plain, model).plan  # the changed weights wait for the next run with the file
    assert waiting.predicted_peak_bytes == with_.predicted_peak_bytes
    model.adapted.clear()


@pytest.mark.parametrize(("device", "copies"), [("cpu", 1), ("cuda", 0), ("mps", 2)])
def test_what_waits_for_a_lora_takes_the_memory_of_the_device_or_none_of_it(device, copies):
    plans = [
        pair_plan([KOALA_700M], device=device, vram_bytes=None, width=512, height=512, dtype="float32", lora=lora)
        for lora in (0, GB)
    ]
    assert plans[1].predicted_peak_bytes - plans[0].predicted_peak_bytes == copies * GB
