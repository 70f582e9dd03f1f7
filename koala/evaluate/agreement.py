"""How far a student's noise and self-attention are from its teacher's, at fixed inputs, noise and timesteps.

One definition for every model, and no data set: the clean latents are the teacher's own pictures of the prompts,
drawn at the teacher's settings. They are noised to fixed timesteps with noise of their own seeds, and both networks
predict it with the prompt and without guidance, as in distillation (KOALA, eq. A.5). So the score says how well the
student replaces its teacher on the teacher's trajectories; on its own trajectories it can be worse.

B batch, P prompts, T timesteps, L self-attention layers of the student.
"""

from collections.abc import Callable, Mapping

import torch

from koala.errors import UserError
from koala.evaluate.drawing import batches, clean_latents, placement_for, requests_for
from koala.evaluate.settings import Settings
from koala.models.hooks import tap
from koala.models.loaded import LoadedModel, Placement
from koala.models.registry import torch_only
from koala.sampling.nan_causes import check_prediction
from koala.sampling.noising import noising_of
from koala.unet.layer_map import self_attention_pairs

BUCKET = 100  # timesteps per bucket; each is measured at its centre
TIMESTEPS = tuple(range(BUCKET // 2, 1000, BUCKET))
NOISE_SEED = 2**31  # the added noise is not the noise that the picture was drawn from
PROMPTS = 32  # of the shapes world, without a file of prompts
OUTPUT = "output"


def pairs(student: LoadedModel, teacher: LoadedModel) -> list[tuple[str, str, str]]:
    """(stage, student's attn1, teacher's attn1); UserError if the teacher cannot be this student's."""
    for model in (student, teacher):
        torch_only(model.card, "its agreement with a teacher")
    spec, teacher_spec = student.spec, teacher.spec
    refusal = f"{teacher.card.name} is not a teacher of {student.card.name}"
    if spec.channels != teacher_spec.channels:
        raise UserError(f"{refusal}: its stages are {teacher_spec.channels} wide, the student's {spec.channels}")
    kinds = [m.pipeline.scheduler.config.prediction_type for m in (student, teacher)]
    if kinds[0] != kinds[1]:
        raise UserError(f"{refusal}: it predicts {kinds[1]}, the student {kinds[0]}")
    try:
        return self_attention_pairs(spec, teacher_spec)
    except UserError as error:
        raise UserError(f"{refusal}: {error}; name the network it was cut from with --teacher") from error


def relative_error(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """|student - teacher| / |teacher| per sample, (B, ...) -> (B,): 0 if equal, 1 for a prediction of zeros."""
    s, t = student.flatten(1).float(), teacher.flatten(1).float()
    return (s - t).norm(dim=1) / t.norm(dim=1)


def cosine(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Cosine of the angle between the two per sample, (B, ...) -> (B,)."""
    return torch.cosine_similarity(student.flatten(1).float(), teacher.flatten(1).float(), dim=1)


@torch.inference_mode()
def conditioning(model: LoadedModel, placement: Placement, prompts: list[str], width: int, height: int) -> dict:
    """The U-Net's arguments for these prompts, as the model's own pipeline makes them without guidance."""
    with model.lock:
        placement.enter("text", model)
        embeds, _, pooled, _ = model.pipeline.encode_prompt(
            prompt=prompts, device=model.device, do_classifier_free_guidance=False
        )
    sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=embeds.dtype, device=model.device)
    added = {"text_embeds": pooled, "time_ids": sizes.repeat(len(prompts), 1)}
    return {"encoder_hidden_states": embeds, "added_cond_kwargs": added}


@torch.inference_mode()
def predict(
    model: LoadedModel,
    placement: Placement,
    layers: list[str],
    noisy: torch.Tensor,
    timestep: int,
    asked: Mapping[str, object],
) -> dict[str, torch.Tensor]:
    """The predicted noise under OUTPUT, and the output of every layer under its path."""
    unet = model.pipeline.unet
    with model.lock, tap({path: unet.get_submodule(path) for path in layers}) as seen:
        placement.enter("unet", model)
        output = unet(noisy.to(model.device, model.dtype), timestep, **asked).sample
    check_prediction(output, model, (asked["encoder_hidden_states"], asked["added_cond_kwargs"]["text_embeds"]))
    return seen | {OUTPUT: output}


def added_noise(seeds: list[int], shape: torch.Size) -> torch.Tensor:
    """Unit noise, one sample of `shape` (4, h, w) per seed: (B, 4, h, w), never what the pictures were drawn from."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(NOISE_SEED + s)) for s in seeds])


@torch.inference_mode()
def measure(
    student: LoadedModel,
    teacher: LoadedModel,
    prompts: list[str],
    settings: Settings,
    say: Callable[[str], None],
) -> tuple[list[tuple[str, str, str]], torch.Tensor]:
    """The layers, and their relative errors and cosines (2, T, 1 + L, P); the output comes before the layers."""
    layers = pairs(student, teacher)
    student_paths, teacher_paths = [path for _, path, _ in layers], [path for _, _, path in layers]
    watched = [(OUTPUT, OUTPUT), *zip(student_paths, teacher_paths, strict=True)]
    values = torch.empty(2, len(TIMESTEPS), len(watched), len(prompts))
    alphas, noising = teacher.pipeline.scheduler.alphas_cumprod, noising_of(teacher.card)
    done = 0
    for batch in batches(requests_for(teacher, prompts, settings), settings.batch_size):
        say(f"agreement: {done} of {len(prompts)} prompts; {teacher.card.name} draws the next {len(batch)}")
        texts, (width, height) = [r.prompt for r in batch], (batch[0].width, batch[0].height)
        placement = placement_for([student, teacher], batch)
        with teacher.lock:
            latents = clean_latents(teacher, batch, placement)[1].float().cpu()
        noise = added_noise([r.seed for r in batch], latents.shape[1:])
        asked = [conditioning(m, placement, texts, width, height) for m in (student, teacher)]
        here = slice(done, done + len(batch))
        for at, timestep in enumerate(TIMESTEPS):
            noisy, _ = noising(latents, noise, torch.full((len(batch),), timestep), alphas)
            s = predict(student, placement, student_paths, noisy, timestep, asked[0])
            t = predict(teacher, placement, teacher_paths, noisy, timestep, asked[1])
            for layer, (a, b) in enumerate(watched):
                values[0, at, layer, here] = relative_error(s[a], t[b]).cpu()
                values[1, at, layer, here] = cosine(s[a], t[b]).cpu()
        done += len(batch)
    return layers, values


def _mean(values: torch.Tensor) -> dict:
    """Relative error and cosine, (2, ...) -> their means."""
    error, angle = values.flatten(1).double().mean(1).tolist()
    return {"relative_error": error, "cosine": angle}


def _over_time(values: torch.Tensor) -> list[dict]:
    """(2, T, ...) -> the means at every timestep."""
    return [{"timestep": t, **_mean(values[:, at])} for at, t in enumerate(TIMESTEPS)]


def evaluate(
    student: LoadedModel,
    teacher: LoadedModel,
    prompts: list[str],
    settings: Settings,
    say: Callable[[str], None],
) -> dict:
    """Means over prompts, timesteps and layers: of the output and of self-attention, per stage, bucket and layer."""
    layers, values = measure(student, teacher, prompts, settings, say)
    output, attention = values[:, :, 0], values[:, :, 1:]
    stages = {}
    for stage in dict.fromkeys(stage for stage, _, _ in layers):
        own = attention[:, :, [k for k, (at, _, _) in enumerate(layers) if at == stage]]
        stages[stage] = {"layers": own.shape[2], **_mean(own), "by_timestep": _over_time(own)}
    return {
        "suite": "agreement",
        "model": student.card.name,
        "teacher": teacher.card.name,
        "num_prompts": len(prompts),
        "timestep_bucket": BUCKET,
        "scores": {
            "output": _mean(output) | {"by_timestep": _over_time(output)},
            "self_attention": _mean(attention)
            | {
                "layers": len(layers),
                "by_stage": stages,
                "by_timestep": _over_time(attention),
                "by_layer": [
                    {"stage": stage, "student": student_path, "teacher": teacher_path, **_mean(attention[:, :, k])}
                    for k, (stage, student_path, teacher_path) in enumerate(layers)
                ],
            },
        },
    }
