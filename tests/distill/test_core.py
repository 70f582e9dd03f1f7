"""The training core against tables, formulas and torch's own optimizer: what a wrong line would learn in silence."""

import dataclasses
import json
import math
import shutil
from collections import Counter

import pytest
import torch
from diffusers import EulerDiscreteScheduler, UNet2DConditionModel

from koala.distill.config import TIMESTEPS, DistillConfig
from koala.distill.data.encoders import encoder_files
from koala.distill.draws import draw
from koala.distill.optimizers import Ema, Muon, build_optimizers, learning_rate
from koala.distill.timesteps import called
from koala.distill.timesteps import shares as timestep_shares
from koala.models.cards import EMBEDDED
from koala.sampling.noising import ddpm, straight
from koala.unet.specs import TINY_KOALA_700M

DRAWN = 10_000


@pytest.mark.parametrize(
    ("step", "rate"),
    [
        (0, 0.25), (1, 0.5), (2, 0.75), (3, 1.0),  # a warm-up of four steps; the cosine is 0.998 at step 3
        (25, 0.8565), (50, 0.51), (75, 0.1635), (99, 0.0202),
    ],
)  # fmt: skip
def test_the_cosine_of_a_hundred_steps(step, rate):
    """0.02 + 0.98 (1 + cos(pi step / 100)) / 2, by a table of cosines: cos 45 degrees is 0.7071."""
    config = DistillConfig(num_steps=100, learning_rate=2.0, schedule="cosine", warmup_steps=4)
    assert learning_rate(config, step) == pytest.approx(2.0 * min(rate, 1.0), rel=3e-3)


@pytest.mark.parametrize(("step", "rate"), [(0, 0.1), (4, 0.5), (9, 1.0), (10, 1.0), (99, 1.0)])
def test_a_constant_rate_after_its_warm_up(step, rate):
    config = DistillConfig(num_steps=100, learning_rate=2.0, warmup_steps=10)
    assert learning_rate(config, step) == pytest.approx(2.0 * rate)
    assert learning_rate(DistillConfig(num_steps=100, learning_rate=2.0), step) == 2.0


def test_a_moving_average_of_two_steps_by_hand():
    """Its decay is 2/11 and then 3/12: from 1, the weights 2 and 4 give 20/11 and 38/11. A decay of 0.1 stays 0.1."""
    layer = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        for decay, expected in ((0.99, (20 / 11, 38 / 11)), (0.1, (1.9, 3.79))):
            layer.weight.fill_(1.0)
            ema, result = Ema(layer, decay), []
            for weight in (2.0, 4.0):
                layer.weight.fill_(weight)
                ema.update(layer)
                result.append(ema.weights["weight"].item())
            assert result == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(24, 16), (16, 24), (16, 16), (8, 4, 3, 3)])
def test_two_updates_of_muon_are_those_of_torch(shape):
    """torch.optim.Muon takes matrices alone: a convolution is the matrix (out, in * kernel)."""
    source = torch.Generator().manual_seed(0)
    start = torch.randn(shape, generator=source)
    ours = torch.nn.Parameter(start.clone())
    reference = torch.nn.Parameter(start.clone().flatten(1))
    settings = dict(lr=0.1, momentum=0.95, weight_decay=0.1)
    optimizers = Muon([ours], **settings), torch.optim.Muon([reference], **settings, adjust_lr_fn="match_rms_adamw")
    for _ in range(2):
        gradient = torch.randn(shape, generator=source)
        ours.grad, reference.grad = gradient.clone(), gradient.clone().flatten(1)
        for optimizer in optimizers:
            optimizer.step()
    moved = (reference - start.flatten(1)).norm()
    assert (ours.flatten(1) - reference).norm() < 0.05 * moved  # bf16 has three digits, and sums in another order


def test_muon_takes_the_hidden_matrices_alone():
    with torch.device("meta"):
        student = UNet2DConditionModel(**TINY_KOALA_700M.config())
    muon, adamw = build_optimizers(student, DistillConfig(optimizer="muon", precision="fp32", weight_decay=0.03))
    names = {id(p): n for n, p in student.named_parameters()}
    rest = {names[id(p)] for p in adamw.param_groups[0]["params"]}
    hidden = {names[id(p)] for p in muon.param_groups[0]["params"]}
    assert rest | hidden == set(names.values()) and not rest & hidden
    ends = {"conv_in", "conv_out", "time_embedding.linear_1", "add_embedding.linear_1"}
    matrices = {n for n in rest if dict(student.named_parameters())[n].ndim > 1}
    assert matrices == {f"{n}.weight" for n in ends}
    assert {g["weight_decay"] for o in (muon, adamw) for g in o.param_groups} == {0.03}


def timesteps(kind: str) -> list[int]:
    config = DistillConfig(timesteps=kind, seed=3)
    return draw(config, range(DRAWN), (1, 1, 1)).timesteps.tolist()


def shares(drawn: list[int]) -> list[float]:
    """Of the ten hundreds."""
    counts = Counter(t // 100 for t in drawn)
    return [counts[k] / len(drawn) for k in range(10)]


def test_every_seed_and_every_place_of_a_run_has_draws_of_its_own():
    first, again, seed = (draw(DistillConfig(seed=s), range(4), (4, 8, 8)) for s in (0, 0, 1))
    assert torch.equal(first.noise, again.noise) and first.picks == again.picks
    assert not (first.noise == seed.noise).any() and first.picks != seed.picks
    later = draw(DistillConfig(), [2], (4, 8, 8))
    assert torch.equal(later.noise[0], first.noise[2]) and not torch.equal(first.noise[0], first.noise[1])


def test_timesteps_are_uniform():
    drawn = timesteps("uniform")
    assert min(drawn) >= 0 and max(drawn) <= 999
    assert shares(drawn) == pytest.approx([0.1] * 10, abs=0.012)  # four standard deviations


def test_half_of_high_noise_timesteps_are_logit_normal():
    """P(t < b) = b / 2 + Phi(logit(b) - 0.8) / 2 with Phi of the standard normal distribution."""

    def below(b: float) -> float:
        if b in (0.0, 1.0):
            return b
        return b / 2 + (1 + math.erf((math.log(b / (1 - b)) - 0.8) / math.sqrt(2))) / 4

    expected = [below((k + 1) / 10) - below(k / 10) for k in range(10)]
    drawn = timesteps("high-noise")
    assert min(drawn) >= 0 and max(drawn) <= 999
    assert shares(drawn) == pytest.approx(expected, abs=0.017)


def test_timesteps_of_calls_are_those_of_a_trailing_schedule_and_half_of_them_its_first():
    """Trailing by hand: four calls are 250, 500, 750 and 1,000 of 1,000, each less one."""
    config = DistillConfig(timesteps="calls", calls=4)
    drawn = Counter(draw(config, range(DRAWN), (1, 1, 1)).timesteps.tolist())
    assert set(drawn) == {249, 499, 749, 999}
    assert drawn[999] / DRAWN == pytest.approx(0.625, abs=0.02)
    assert [drawn[t] / DRAWN for t in (249, 499, 749)] == pytest.approx([0.125] * 3, abs=0.014)


@pytest.mark.parametrize("calls", [1, 2, 5, 8, 1000])
def test_calls_are_the_timesteps_that_diffusers_gives_a_trailing_schedule(calls):
    scheduler = EulerDiscreteScheduler(timestep_spacing="trailing")
    scheduler.set_timesteps(calls)
    assert called(calls) == sorted(int(timestep) for timestep in scheduler.timesteps)


@pytest.mark.parametrize("name", TIMESTEPS)
def test_the_share_of_a_timestep_is_how_often_it_is_drawn(name):
    expected = torch.tensor(timestep_shares(DistillConfig(timesteps=name)))
    assert expected.shape == (1000,) and expected.sum().item() == pytest.approx(1)
    drawn = torch.histc(torch.tensor(timesteps(name), dtype=torch.float64), 20, 0, 1000) / DRAWN
    assert drawn.tolist() == pytest.approx(expected.reshape(20, 50).sum(1).tolist(), abs=0.02)


def test_half_of_the_timesteps_of_the_noisiest_quarter_lie_there_and_five_eighths_in_all():
    drawn = torch.tensor(timesteps("noisiest-quarter"))
    assert (drawn >= 750).float().mean().item() == pytest.approx(0.625, abs=0.02)
    below = torch.histc(drawn[drawn < 750].float(), 3, 0, 750) / DRAWN
    assert below.tolist() == pytest.approx([1 / 8] * 3, abs=0.014)


def test_the_share_of_empty_prompts_is_the_one_that_was_asked():
    for share in (0.0, 0.1, 0.6):
        picks = draw(DistillConfig(empty_prompts=share), range(DRAWN), (1, 1, 1)).picks
        assert sum(p < 0 for p in picks) / DRAWN == pytest.approx(share, abs=0.02)
        with_caption = [p for p in picks if p >= 0]
        assert (
            sum(with_caption) / len(with_caption) == pytest.approx(0.5, abs=0.02) and max(with_caption) < 1
        )  # captions are drawn evenly


@pytest.mark.parametrize("offset", [0.0, 0.5])
def test_an_offset_shifts_each_channel_of_each_picture(offset):
    """The mean of a channel over n pixels has the variance 1/n + offset squared, and channels are independent."""
    noise = draw(DistillConfig(noise_offset=offset), range(2_000), (4, 8, 8)).noise
    means = noise.mean((2, 3))  # (2000, 4)
    assert means.var(0).tolist() == pytest.approx([1 / 64 + offset**2] * 4, rel=0.15)
    assert (noise - means[..., None, None]).var().item() == pytest.approx(63 / 64, rel=0.02)
    correlation = torch.corrcoef(means.T)
    assert (correlation - torch.eye(4)).abs().max() < 0.1


def test_what_is_seen_and_wanted_of_a_picture_as_it_fades():
    """One pixel of value 2 and noise 3, where the signal's share is 0.36; the last step keeps 0.04 of it."""
    alphas = torch.tensor([0.36, 0.04])
    latents, noise, first = torch.full((1, 1, 1, 1), 2.0), torch.full((1, 1, 1, 1), 3.0), torch.tensor([0])
    seen, wanted = ddpm(latents, noise, first, alphas)
    assert (seen.item(), wanted.item()) == pytest.approx((0.6 * 2 + 0.8 * 3, 3.0))
    sigma, sigma_max = 0.8 / 0.6, math.sqrt(0.96 / 0.04)
    seen, wanted = straight(latents, noise, first, alphas)
    assert (seen.item(), wanted.item()) == pytest.approx(
        (0.6 * (1 - sigma / sigma_max) * 2 + 0.8 * 3, 3 - 2 / sigma_max)
    )
    seen, _ = straight(latents, noise, torch.tensor([1]), alphas)
    assert seen.item() == pytest.approx(math.sqrt(0.96) * 3, rel=1e-5)  # noise alone


@pytest.mark.parametrize(("config", "dtype"), [(True, "float32"), (None, "float32"), (False, "float16")])
def test_a_vae_that_overflows_in_half_precision_encodes_in_single(tmp_path, config, dtype):
    """`force_upcast` of its config; diffusers' default, where it is silent, is true."""
    folder = shutil.copytree(EMBEDDED / "tiny-sdxl", tmp_path / "model")
    file = folder / "vae" / "config.json"
    values = json.loads(file.read_text()) | {"force_upcast": config, "scaling_factor": 0.25}
    file.write_text(json.dumps({k: v for k, v in values.items() if v is not None}))
    encoders = dataclasses.replace(encoder_files(str(folder), "cpu"), dtype=torch.float16).load("cpu")
    assert encoders.pipeline.vae.dtype == getattr(torch, dtype)
    assert encoders.pipeline.text_encoder.dtype == torch.float16
    vae = encoders.pipeline.vae.float()
    pixels = torch.randint(0, 256, (1, 64, 64, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    with torch.no_grad():
        mode = vae.encode(pixels.permute(0, 3, 1, 2) / 127.5 - 1).latent_dist.mode()
    assert torch.allclose(encoders.pictures(pixels.numpy()), 0.25 * mode, atol=1e-6)
