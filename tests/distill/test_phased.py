"""Few-step and unguided students: the loss against formulas written out here."""

import pytest
import torch
from diffusers import DDPMScheduler, EulerDiscreteScheduler

from koala.distill.config import DistillConfig
from koala.distill.data.encoded import Batch
from koala.distill.draws import Draws, draw
from koala.distill.estimate.passes import passes_of
from koala.distill.loss.phased import GuidanceStep, PhasedStep
from koala.distill.loss.phases import Phases
from koala.distill.loss.step import BrokenLoss, Losses, check_gradients
from koala.distill.loss.velocity import GuidedTeacher
from koala.distill.optimizers import learning_rate
from koala.distill.sampling import guidance_range
from koala.errors import UserError
from koala.models.cards import CARDS, EMBEDDED
from koala.sampling.noising import ddpm, straight

SCHEDULER = EMBEDDED / "tiny-sdxl" / "scheduler"
ALPHAS = DDPMScheduler.from_pretrained(SCHEDULER).alphas_cumprod
SIGMAS = ((1 - ALPHAS) / ALPHAS).sqrt()
EMPTY = torch.zeros(1, 77, 3), torch.zeros(1, 5)


def values(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def conditioning(count: int) -> dict[str, torch.Tensor]:
    return dict(context=values(count, 77, 3, seed=8), pooled=values(count, 5, seed=9), time_ids=torch.ones(count, 6))


class Output:
    def __init__(self, sample: torch.Tensor):
        self.sample = sample


class Formula(torch.nn.Module):
    """A U-Net by a formula of what it sees; it counts the pictures that it is called with."""

    dtype = torch.float32

    def __init__(self, formula):
        super().__init__()
        self.formula, self.pictures = formula, 0
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, noisy, timesteps, context, added_cond_kwargs):
        assert len(noisy) == len(timesteps) == len(context) == len(added_cond_kwargs["text_embeds"])
        self.pictures += len(noisy)
        return Output(self.formula(noisy, timesteps, context, added_cond_kwargs["text_embeds"]) + self.weight)


def phased(config, student, teacher, noising, timesteps, *, guidance=(1.0, 1.0), prediction="epsilon", latents=None):
    """The loss of these timesteps, one picture each, from the noise of seed 1."""
    count = len(timesteps)
    latents = values(count, 4, 8, 8) if latents is None else latents
    guided = GuidedTeacher(teacher, EMPTY, guidance, prediction)
    step = PhasedStep(config, guided, ALPHAS, noising)
    draws = Draws(noise=values(count, 4, 8, 8, seed=1), timesteps=timesteps, picks=())
    with step.hooked(student) as losses_of:
        return losses_of(student, Batch(latents=latents, **conditioning(count)), draws)


@pytest.mark.parametrize("phases", [1, 2, 4, 8])
def test_phases_end_where_trailing_euler_stops(phases):
    sampler = EulerDiscreteScheduler.from_pretrained(SCHEDULER, timestep_spacing="trailing")
    sampler.set_timesteps(phases)
    schedule = Phases(ALPHAS, phases, 40)
    levels = schedule.level(torch.arange(1000))
    assert levels.unique().tolist() == list(range(1, 41)) and levels.bincount()[1:].tolist() == [25] * 40
    starts = torch.arange(phases, 0, -1) * (40 // phases)
    assert schedule.timesteps[starts].tolist() == sampler.timesteps.tolist()
    torch.testing.assert_close(schedule.sigmas[starts], sampler.sigmas[:-1], rtol=1e-5, atol=0)
    torch.testing.assert_close(schedule.sigmas[schedule.end(starts)], sampler.sigmas[1:], rtol=1e-5, atol=0)
    for level in levels.unique():  # every level ends at the highest of these ends below it
        below = [end for end in (starts - 40 // phases).tolist() if end < level]
        assert schedule.end(level) == max(below)


@pytest.mark.parametrize("teacher_steps", [1, 3])
@pytest.mark.parametrize("phases", [1, 2, 4, 8])
def test_a_network_that_knows_the_straight_path_has_no_loss_and_lands_on_the_picture(phases, teacher_steps):
    latents, noise = values(40, 4, 8, 8), values(40, 4, 8, 8, seed=1)
    config = DistillConfig(method="phased", phases=phases, teacher_steps=teacher_steps)

    class Known(Formula):
        """noise - latents / sigma_max, found by what it sees: each row has one pair."""

        def __init__(self):
            super().__init__(None)
            self.known = noise - latents / SIGMAS[-1]

        def forward(self, noisy, timesteps, context, added_cond_kwargs):
            rows = added_cond_kwargs["time_ids"][:, 0].long()
            return Output(self.known[rows] + self.weight)

    known = Known()
    step = PhasedStep(config, GuidedTeacher(known, EMPTY, (2.0, 2.0)), ALPHAS, straight)
    conditions = conditioning(40) | {"time_ids": torch.arange(40.0).view(-1, 1).repeat(1, 6)}
    draws = Draws(noise=noise, timesteps=torch.arange(40) * 25, picks=())
    with step.hooked(known) as losses_of:
        losses = losses_of(known, Batch(latents=latents, **conditions), draws)
    assert set(losses.terms) == {"consistency"} and losses.pairs == {}
    assert losses.total.item() < 1e-6

    sampler = EulerDiscreteScheduler.from_pretrained(SCHEDULER, timestep_spacing="trailing")
    sampler.set_timesteps(phases)
    state = noise * sampler.init_noise_sigma
    for t in sampler.timesteps:
        state = sampler.step(known.known, t, state).prev_sample
    torch.testing.assert_close(state, latents, rtol=0, atol=2e-5)


def nets():
    """A student and a teacher that are neither right nor alike, and that listen to what they are told."""
    student = Formula(lambda x, t, c, p: 0.3 * x + 0.1 * torch.tanh(x * (1 + t.view(-1, 1, 1, 1) / 500)))
    teacher = Formula(lambda x, t, c, p: 0.5 * x + c.mean((1, 2)).view(-1, 1, 1, 1) + p.mean(1).view(-1, 1, 1, 1))
    return student, teacher


def official(student, teacher, latents, noise, index, *, phases, solver_steps, w, huber, target_net=None):
    """Phased consistency as its authors' script computes it, in x-space with alphas and noise (Wang et al. 2024)."""
    count = len(index)
    ratio = 1000 // solver_steps
    grid = torch.arange(1, solver_steps + 1) * ratio - 1
    alphas = torch.cat([torch.ones(1), ALPHAS[grid]])  # one longer: what a step from the first timestep leads to
    a = lambda k: alphas[k].view(-1, 1, 1, 1)  # noqa: E731
    cells = solver_steps // phases
    end = torch.tensor([(int(k) // cells) * cells for k in index])

    def ddim(x0, eps, k):
        return a(k).sqrt() * x0 + (1 - a(k)).sqrt() * eps

    def clean(x, eps, k):
        return (x - (1 - a(k)).sqrt() * eps) / a(k).sqrt()

    given = conditioning(count)
    none = {name: torch.zeros_like(given[name]) for name in ("context", "pooled")}
    start = index + 1
    x = a(start).sqrt() * latents + (1 - a(start)).sqrt() * noise
    call = lambda net, x, t, g: net(x, t, g["context"], {"text_embeds": g["pooled"]}).sample  # noqa: E731
    prompted, free = call(teacher, x, grid[index], given), call(teacher, x, grid[index], none)
    # w of the script is one less than diffusers' guidance scale
    x0 = clean(x, prompted, start) + (w - 1) * (clean(x, prompted, start) - clean(x, free, start))
    eps = prompted + (w - 1) * (prompted - free)
    before = ddim(x0, eps, index)
    eps = call(target_net or student, before, grid[(index - 1).clamp(min=0)], given)
    target = ddim(clean(before, eps, index), eps, end)
    target = torch.where((end == index).view(-1, 1, 1, 1), before, target)
    eps = call(student, x, grid[index], given)
    predicted = ddim(clean(x, eps, start), eps, end)
    return (((predicted - target) ** 2 + huber**2).sqrt() - huber).mean()


@pytest.mark.parametrize("phases", [1, 2, 4, 8])
def test_on_ddpms_noise_the_loss_is_the_official_one_in_x_space(phases):
    student, teacher = nets()
    config = DistillConfig(method="phased", phases=phases, huber=0.01)
    index = torch.arange(40)
    losses = phased(config, student, teacher, ddpm, index * 25 + 7, guidance=(2.5, 2.5))
    latents, noise = values(40, 4, 8, 8), values(40, 4, 8, 8, seed=1)
    expected = official(student, teacher, latents, noise, index, phases=phases, solver_steps=40, w=2.5, huber=0.01)
    print(f"difference {abs(losses.total - expected).item():.3g} of {expected.item():.3g}")
    torch.testing.assert_close(losses.total, expected, rtol=2e-5, atol=1e-7)


def as_prediction(net: Formula, kind: str) -> Formula:
    """The same U-Net, predicting something else: v = sqrt(a) eps - sqrt(1 - a) x0 (Salimans and Ho 2022), or x0."""

    def formula(x, t, c, p):
        eps, a = net.formula(x, t, c, p) + net.weight, ALPHAS[t].view(-1, 1, 1, 1)
        x0 = (x - (1 - a).sqrt() * eps) / a.sqrt()
        return a.sqrt() * eps - (1 - a).sqrt() * x0 if kind == "v_prediction" else x0

    return Formula(formula)


@pytest.mark.parametrize("kind", ["v_prediction", "sample"])
@pytest.mark.parametrize("noising", [ddpm, straight])
@pytest.mark.parametrize("method", ["phased", "guidance"])
def test_other_predictions_have_the_loss_of_epsilon(method, noising, kind):
    config, timesteps = DistillConfig(method=method), torch.arange(40) * 25 + 24
    totals = []
    for prediction in ("epsilon", kind):
        networks = nets() if prediction == "epsilon" else [as_prediction(net, kind) for net in nets()]
        student, teacher = networks
        step = (PhasedStep if method == "phased" else GuidanceStep)(
            config, GuidedTeacher(teacher, EMPTY, (2.0, 2.0), prediction), ALPHAS, noising
        )
        draws = Draws(noise=values(40, 4, 8, 8, seed=1), timesteps=timesteps, picks=())
        with step.hooked(student) as losses_of:
            totals.append(losses_of(student, Batch(latents=values(40, 4, 8, 8), **conditioning(40)), draws).total)
    torch.testing.assert_close(totals[1], totals[0], rtol=1e-3, atol=1e-6)


def test_what_guidance_teaches_is_the_guided_teachers_output():
    student, teacher = nets()
    config, timesteps = DistillConfig(method="guidance", huber=1.0), torch.arange(12) * 80
    latents, noise, given = values(12, 4, 8, 8), values(12, 4, 8, 8, seed=1), conditioning(12)
    strengths = torch.linspace(0, 1, 12)
    step = GuidanceStep(config, GuidedTeacher(teacher, EMPTY, (2.0, 4.0)), ALPHAS, ddpm)
    draws = Draws(noise=noise, timesteps=timesteps, picks=(), strengths=strengths)
    with step.hooked(student) as losses_of:
        losses = losses_of(student, Batch(latents=latents, **given), draws)
    a = ALPHAS[timesteps].view(-1, 1, 1, 1)
    x = a.sqrt() * latents + (1 - a).sqrt() * noise
    prompted = teacher.formula(x, timesteps, given["context"], given["pooled"])
    free = teacher.formula(x, timesteps, 0 * given["context"], 0 * given["pooled"])
    w = (2 + 2 * strengths).view(-1, 1, 1, 1)
    d = student.formula(x, timesteps, None, None) - (free + w * (prompted - free))
    assert set(losses.terms) == {"guidance"}
    torch.testing.assert_close(losses.total.detach(), ((d**2 + 1).sqrt() - 1).mean(), rtol=1e-5, atol=0)


@pytest.mark.parametrize(
    ("settings", "guidance"),
    [
        ({}, (2.0, 2.0)),
        ({}, (1.0, 1.0)),
        ({"teacher_steps": 4}, (2.0, 2.0)),
        ({"teacher_steps": 10}, (2.0, 2.0)),
        ({"phases": 40}, (1.0, 1.0)),
    ],
)
def test_no_picture_is_computed_that_no_loss_needs(settings, guidance):
    """And the estimate knows how many are, with every level drawn once."""
    student, teacher = nets()
    config = DistillConfig(method="phased", guidance_min=guidance[0], guidance_max=guidance[1], **settings)
    phased(config, student, teacher, ddpm, torch.arange(40) * 25, guidance=guidance)
    expected = passes_of(config)
    assert teacher.pictures == pytest.approx(40 * expected.teacher)
    assert student.pictures == pytest.approx(40 * (expected.student - 2))  # a backward pass counts as two
    cells, k = 40 // config.phases, config.teacher_steps
    walked = sum(min(place + 1, k) for place in range(cells)) * config.phases
    assert teacher.pictures == walked * (2 if guidance[1] > 1 else 1)
    assert student.pictures == 40 + (cells - k) * config.phases


@pytest.mark.parametrize(
    ("settings", "walked"),
    [
        ({"timesteps": "calls", "calls": 4}, 0.75 * 10 + 0.25 * 5),  # the first call and the third begin a phase
        ({"timesteps": "calls", "calls": 1}, 10),
        (
            {"timesteps": "noisiest-quarter"},
            (0.5 * 5.5 + 0.5 * 8),
        ),  # ten levels; the top five
        ({}, 5.5),
    ],
)
def test_the_estimate_knows_how_far_the_teacher_walks_from_the_timesteps_that_are_drawn(settings, walked):
    config = DistillConfig(method="phased", phases=2, solver_steps=20, teacher_steps=10, guidance_max=1.0,
                           guidance_min=1.0, **settings)  # fmt: skip
    assert passes_of(config).teacher == pytest.approx(walked)


@pytest.mark.parametrize("target", ["student", "ema"])
def test_the_goal_has_no_gradient_and_may_be_the_moving_averages(target):
    student, teacher = nets()
    config = DistillConfig(method="phased", target=target)
    latents, noise, index = values(40, 4, 8, 8), values(40, 4, 8, 8, seed=1), torch.arange(40)
    step = PhasedStep(config, GuidedTeacher(teacher, EMPTY, (1.0, 1.0)), ALPHAS, ddpm)
    with step.hooked(student, {"weight": torch.tensor(0.2)}) as losses_of:
        total = losses_of(
            student, Batch(latents=latents, **conditioning(40)), Draws(noise=noise, timesteps=index * 25, picks=())
        )
    total.total.backward()
    average = Formula(lambda *inputs: student.formula(*inputs) + (0.2 if target == "ema" else 0.0))
    twin = Formula(student.formula)
    expected = official(
        twin, teacher, latents, noise, index, phases=4, solver_steps=40, w=1.0, huber=0.001, target_net=average
    )
    expected.backward()
    torch.testing.assert_close(total.total, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(student.weight.grad, twin.weight.grad, rtol=1e-3, atol=1e-5)


def test_a_loss_that_is_0_from_the_start_is_no_broken_one_and_one_without_a_gradient_is():
    weight = torch.nn.Parameter(torch.ones(()))
    net = torch.nn.Module()
    net.conv_in = torch.nn.Module()
    net.conv_in.weight = weight
    right = (weight * 0).sum()
    check_gradients(Losses(total=right, terms={"consistency": right}, pairs={}), net)
    for broken in (torch.ones(()), torch.ones((), requires_grad=True) * 2):
        with pytest.raises(BrokenLoss, match="the term consistency has no gradient"):
            check_gradients(Losses(total=broken, terms={"consistency": broken}, pairs={}), net)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"phases": 2}, "method=koala does not use phases; use the default: phases=4"),
        ({"method": "phased", "features": ("CA",)}, "does not use features; .*: features=SA"),
        ({"method": "phased", "min_snr_gamma": 5.0, "lf_at_ends": False}, "lf_at_ends=true min_snr_gamma=0.0"),
        ({"method": "guidance", "solver_steps": 50}, "does not use solver_steps"),
        ({"method": "phased", "phases": 3}, "phases must divide the 1,000 timesteps, and 3 does not; choose phases=2"),
        ({"method": "phased", "phases": 8, "solver_steps": 50}, "multiple of the 8 phases, not 50; .*=40"),
        ({"method": "phased", "teacher_steps": 11}, "10 of the solver's steps.*choose teacher_steps=10"),
        ({"method": "phased", "guidance_min": 2.0}, "guidance_min=2 and guidance_max=0 are not a range"),
        ({"method": "phased", "guidance_min": 0.5, "guidance_max": 2.0}, "are not a range"),
        ({"method": "phased", "huber": 0.0}, "huber must be above 0"),
        ({"method": "phased", "target": "ema", "ema_decay": 0.0}, "target=ema needs the moving average"),
        ({"method": "phased", "target": "ema", "ema_device": "cpu"}, "choose ema_device=student"),
        ({"calls": 2}, "calls=2 has no effect with timesteps=uniform; choose timesteps=calls"),
        ({"timesteps": "calls", "calls": 3}, "calls must divide the 1,000 timesteps, and 3 does not; choose calls=2"),
        ({"method": "phased", "timesteps": "calls", "calls": 50}, "divide the 40 solver_steps, and 50 .*calls=40"),
        ({"method": "phased", "beta2": 1.0}, "beta2 must lie between 0 and 1"),
        ({"optimizer": "muon", "beta2": 0.99}, "leave beta2=0.999"),
    ],
)
def test_settings_that_do_not_go_together_are_refused_with_a_remedy(settings, message):
    with pytest.raises(UserError, match=message):
        DistillConfig(**settings)


def test_guidance_is_the_teachers_own_unless_a_range_is_set():
    ranged = DistillConfig(method="phased", guidance_min=2.0, guidance_max=7.0)
    assert guidance_range(ranged, CARDS["sdxl-base"]) == (2.0, 7.0)
    own = DistillConfig(method="phased")
    assert guidance_range(own, CARDS["sdxl-base"]) == (7.5, 7.5)
    assert guidance_range(own, CARDS["sdxl-turbo"]) == (1.0, 1.0)
    with pytest.raises(UserError, match="sdxl-turbo has none here; set guidance_min=2 guidance_max=2"):
        guidance_range(DistillConfig(method="guidance"), CARDS["sdxl-turbo"])


def test_strengths_of_guidance_change_no_other_draw_and_stay_the_same_in_any_split():
    fixed, ranged = (DistillConfig(method="phased", guidance_min=2.0, guidance_max=high) for high in (2.0, 7.0))
    plain, whole = (draw(config, range(8), (4, 2, 2)) for config in (fixed, ranged))
    assert plain.strengths is None and torch.equal(plain.noise, whole.noise) and plain.picks == whole.picks
    halves = [draw(ranged, range(start, start + 4), (4, 2, 2)).strengths for start in (0, 4)]
    assert torch.equal(torch.cat(halves), whole.strengths) and len(whole.strengths.unique()) == 8


def test_a_cosine_tail_is_constant_in_the_first_half():
    config = DistillConfig(schedule="cosine-tail", learning_rate=1.0, num_steps=100, warmup_steps=10)
    rates = [learning_rate(config, step) for step in (0, 9, 50, 75, 100)]
    assert rates == pytest.approx([0.1, 1, 1, 0.51, 0.02])


# whole runs
