"""Agreement with the teacher: zero with oneself, by hand for one layer, and the pipeline's own conditioning."""

import dataclasses
import json

import pytest
import torch
from diffusers import DDPMScheduler

from koala.errors import UserError
from koala.evaluate import agreement
from koala.evaluate.drawing import clean_latents, placement_for, requests_for
from koala.evaluate.prompt_files import of_shapes
from koala.evaluate.settings import Settings
from koala.unet.specs import SDXL

SMALL = Settings(width=64, height=64)
PROMPTS = [p.text for p in of_shapes(2)]


@pytest.fixture(scope="module")
def student(library):
    return library.get("tiny-koala-700m")


@pytest.fixture(scope="module")
def teacher(library):
    """The shipped one; it draws its pictures in few steps here."""
    model = library.get("tiny-sdxl")
    return dataclasses.replace(model, card=dataclasses.replace(model.card, steps=3))


@pytest.fixture(scope="module")
def measured(student, teacher):
    """(layers, values (2, T, 1 + L, P)) of the student and its teacher."""
    return agreement.measure(student, teacher, PROMPTS, SMALL, lambda text: None)


def silent(text):
    pass


def test_a_model_agrees_with_itself_exactly(student, monkeypatch):
    monkeypatch.setattr(agreement, "TIMESTEPS", (50, 950))
    layers, values = agreement.measure(student, student, PROMPTS[:1], SMALL, silent)
    error, cosine = values
    print("largest error", error.max().item(), "smallest cosine", cosine.min().item())
    assert len(layers) == 21
    assert (error == 0).all()
    assert cosine.min() > 1 - 1e-5


def test_a_student_and_its_teacher_are_compared_at_every_layer_and_timestep(student, teacher, measured):
    layers, values = measured
    assert len(layers) == 21
    assert values.shape == (2, len(agreement.TIMESTEPS), 1 + 21, 2)
    assert values.isfinite().all()
    assert (values[0] > 0).all()
    assert len(agreement.pairs(teacher.library.get("tiny-koala-1b"), teacher)) == 30


def test_the_report_is_json_and_its_means_are_those_of_its_parts(student, teacher, measured, monkeypatch):
    monkeypatch.setattr(agreement, "measure", lambda *_: measured)
    report = json.loads(json.dumps(agreement.evaluate(student, teacher, PROMPTS, SMALL, silent)))
    attention = report["scores"]["self_attention"]
    stages = attention["by_stage"]
    assert {name: s["layers"] for name, s in stages.items()} == {"DW-2": 2, "DW-3": 5, "UP-1": 10, "UP-2": 4}
    for name, stage in stages.items():
        own = [x["relative_error"] for x in attention["by_layer"] if x["stage"] == name]
        assert stage["relative_error"] == pytest.approx(sum(own) / len(own))
        assert stage["relative_error"] == pytest.approx(sum(t["relative_error"] for t in stage["by_timestep"]) / 10)
    weighted = sum(s["layers"] * s["cosine"] for s in stages.values()) / attention["layers"]
    assert attention["cosine"] == pytest.approx(weighted)
    assert [t["timestep"] for t in report["scores"]["output"]["by_timestep"]] == list(range(50, 1000, 100))
    assert (report["model"], report["teacher"], report["num_prompts"]) == ("tiny-koala-700m", "tiny-sdxl", 2)


@torch.inference_mode()
def test_errors_are_those_of_plain_torch(student, teacher, measured):
    """The second prompt at timestep 550, by hand: diffusers' own add_noise, bare forward hooks, bare arithmetic."""
    layers, values = measured
    batch = requests_for(teacher, PROMPTS, SMALL)
    placement = placement_for([student, teacher], batch)
    with teacher.lock:
        clean = clean_latents(teacher, batch, placement)[1][1:]
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(agreement.NOISE_SEED + 1))
    betas = teacher.pipeline.scheduler.config
    ddpm = DDPMScheduler(beta_start=betas.beta_start, beta_end=betas.beta_end, beta_schedule=betas.beta_schedule)
    sigmas = ((1 - ddpm.alphas_cumprod) / ddpm.alphas_cumprod).sqrt()
    clean = clean * (1 - sigmas[550] / sigmas[-1])  # the embedded teacher saw its pictures fade so
    noisy = ddpm.add_noise(clean, noise, torch.tensor([550]))
    outputs, attention = [], []
    stage, student_path, teacher_path = layers[7]
    for model, path in ((student, student_path), (teacher, teacher_path)):
        handle = model.pipeline.unet.get_submodule(path).register_forward_hook(lambda m, i, o: attention.append(o))
        asked = agreement.conditioning(model, placement, PROMPTS[1:], 64, 64)
        outputs.append(model.pipeline.unet(noisy, 550, **asked).sample)
        handle.remove()
    for layer, (s, t) in ((0, outputs), (8, attention)):
        error = ((s - t).square().sum() / t.square().sum()).sqrt().item()
        cosine = ((s * t).sum() / (s.square().sum() * t.square().sum()).sqrt()).item()
        by_hand, ours = (error, cosine), values[:, 5, layer, 1].tolist()
        print(stage, "difference", max(abs(a - b) for a, b in zip(by_hand, ours, strict=True)))
        assert ours == pytest.approx(by_hand, rel=1e-3)


@torch.inference_mode()
def test_conditioning_is_the_pipelines_own_bit_for_bit(student):
    seen = []
    request = dataclasses.replace(requests_for(student, PROMPTS[:1], SMALL)[0], steps=1, guidance=1.0, width=96)
    hook = student.pipeline.unet.register_forward_pre_hook(lambda m, a, k: seen.append(k), with_kwargs=True)
    placement = placement_for([student], [request])
    with student.lock:
        clean_latents(student, [request], placement)
    hook.remove()
    ours = agreement.conditioning(student, placement, PROMPTS[:1], 96, 64)
    assert torch.equal(ours["encoder_hidden_states"], seen[0]["encoder_hidden_states"])
    for name in ("text_embeds", "time_ids"):
        assert torch.equal(ours["added_cond_kwargs"][name], seen[0]["added_cond_kwargs"][name])


def test_scores_do_not_depend_on_the_batch(student, teacher, measured, monkeypatch):
    monkeypatch.setattr(agreement, "TIMESTEPS", agreement.TIMESTEPS[5:6])
    apart = agreement.measure(student, teacher, PROMPTS, dataclasses.replace(SMALL, batch_size=1), silent)[1]
    difference = (apart - measured[1][:, 5:6]).abs()
    print("max", difference.max().item(), "mean", difference.mean().item())
    assert difference.max() < 1e-3


def test_what_is_no_teacher_is_refused(student, teacher):
    with pytest.raises(UserError, match="tiny-koala-700m is not a teacher of tiny-sdxl: .* --teacher"):
        agreement.pairs(teacher, student)
    with pytest.raises(UserError, match=r"its stages are \(320, 640, 1280\) wide, the student's \(16, 32, 64\)"):
        agreement.pairs(student, dataclasses.replace(teacher, spec=SDXL))
