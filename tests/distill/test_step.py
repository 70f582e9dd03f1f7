"""One step of the trainer against plain PyTorch, and terms that would train nothing."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file
from torch.nn import functional as F

from koala.compress.surgery import cut
from koala.distill.config import BK_LOSS
from koala.distill.data import cache
from koala.distill.data.buckets import BatchOrder
from koala.distill.data.encoders import encoder_files
from koala.distill.draws import draw
from koala.distill.loss.pairs import feature_pairs
from koala.distill.loss.step import BrokenLoss, DistillationStep, alphas_cumprod, check_gradients
from koala.distill.run.folder import RunFolder
from koala.distill.trainer import train
from koala.models.library import Library
from koala.unet.specs import TINY_KOALA_700M, TINY_SDXL


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As the runs here: another number of threads sums in another order, and Adam's first step magnifies the rest."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def teacher():
    return Library("cpu", dtype="float32").get("tiny-sdxl").pipeline


def batch_and_draws(config, step=0):
    encoders = encoder_files("tiny-sdxl", "cpu")
    data = cache.encode(cache.find(config, encoders), encoders, device="cpu")
    bucket, rows = BatchOrder(data.sizes, config.batch_size, config.seed).rows(step)
    shape = (4, bucket[1] // 8, bucket[0] // 8)
    draws = draw(config, range(step * config.batch_size, (step + 1) * config.batch_size), shape)
    return data.batch(bucket, rows, draws.picks), draws


def plain_step(config, teacher, batch, draws) -> UNet2DConditionModel:
    """The same step in plain PyTorch: no trainer, no pairs, no hooks of ours."""
    student = cut(teacher.unet.state_dict(), TINY_KOALA_700M, TINY_SDXL)
    features = {}

    def keep(whose):
        def hook(module, inputs, output):
            features.setdefault(whose, []).append((output[0] if isinstance(output, tuple) else output).flatten(1))

        return hook

    blocks = [("down_blocks.1.attentions.0", 2), ("down_blocks.2.attentions.0", 5)]
    ups = [("up_blocks.0.attentions", 5), ("up_blocks.1.attentions", 2)]
    names = [(f"{b}.transformer_blocks.{j}.attn1",) * 2 for b, d in blocks for j in range(d)]
    names += [
        (f"{b}.{of_student}.transformer_blocks.{j}.attn1", f"{b}.{of_teacher}.transformer_blocks.{j}.attn1")
        for b, d in ups
        for of_student, of_teacher in ((0, 0), (1, 2))
        for j in range(d)
    ]
    for of_student, of_teacher in names:
        student.get_submodule(of_student).register_forward_hook(keep("s"))
        teacher.unet.get_submodule(of_teacher).register_forward_hook(keep("t"))
    for name in ("down_blocks.0", "up_blocks.2"):
        student.get_submodule(name).register_forward_hook(keep("s-end"))
        teacher.unet.get_submodule(name).register_forward_hook(keep("t-end"))
    captioned = torch.tensor([pick >= 0 for pick in draws.picks])  # an empty prompt is zeros
    context = batch.context * captioned.view(-1, 1, 1)
    pooled = batch.pooled * captioned.view(-1, 1)
    alphas = alphas_cumprod(teacher.scheduler.config)
    a = alphas[draws.timesteps].view(-1, 1, 1, 1)
    sigma, sigma_max = ((1 - a) / a).sqrt(), ((1 - alphas[-1]) / alphas[-1]).sqrt()  # the embedded models' own path
    noisy = a.sqrt() * (1 - sigma / sigma_max) * batch.latents + (1 - a).sqrt() * draws.noise
    wanted = draws.noise - batch.latents / sigma_max
    inputs = (noisy, draws.timesteps, context)
    added = {"text_embeds": pooled, "time_ids": batch.time_ids}
    output = student(*inputs, added_cond_kwargs=added).sample
    with torch.no_grad():
        target = teacher.unet(*inputs, added_cond_kwargs=added).sample
    snr = (a / (1 - a)).flatten()
    weight = torch.minimum(snr, torch.tensor(config.min_snr_gamma)) / snr * (1 + 1 / snr) ** config.high_noise_lift
    loss = sum((weight * F.mse_loss(output, x, reduction="none").mean((1, 2, 3))).mean() for x in (wanted, target))
    for of_student, of_teacher in (("s", "t"), ("s-end", "t-end")):
        ratios = [
            ((s - t) ** 2).mean(1) / (t**2).mean(1)
            for s, t in zip(features[of_student], features[of_teacher], strict=True)
        ]
        loss = loss + torch.stack(ratios).mean()
    optimizer = torch.optim.AdamW(student.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), config.max_grad_norm)
    optimizer.step()
    return student


def test_one_step_of_the_trainer_equals_plain_pytorch(trained, teacher):
    equals_plain_pytorch(trained, teacher)


def test_one_step_at_low_noise_with_an_offset_and_an_empty_prompt_equals_plain_pytorch(small, teacher, tmp_path):
    """Where min-SNR's weight is not 1, and where a caption is left out."""

    def fits(seed: int) -> bool:
        drawn = draw(config_of(seed), range(2), (4, 16, 16))
        return bool((drawn.timesteps < 200).all()) and sum(pick < 0 for pick in drawn.picks) == 1

    def config_of(seed: int):
        settings = dict(noise_offset=0.3, empty_prompts=0.5, min_snr_gamma=3.0, high_noise_lift=0.5)
        return small(num_steps=1, validation_pictures=2, max_grad_norm=0.01, seed=seed, **settings)

    run = RunFolder(path=tmp_path / "run")
    train(run, config_of(next(seed for seed in range(1000) if fits(seed))))
    equals_plain_pytorch(run, teacher)


def equals_plain_pytorch(run, teacher):
    config = run.config()
    trained = load_file(run.checkpoint(1) / "student.safetensors")
    expected = plain_step(config, teacher, *batch_and_draws(config)).state_dict()
    differences = {name: (trained[name] - expected[name]).abs() for name in expected}
    largest = max(d.max().item() for d in differences.values())
    mean = sum(d.sum().item() for d in differences.values()) / sum(d.numel() for d in differences.values())
    print(f"max difference {largest:.3g}, mean {mean:.3g}")
    assert len(trained) == len(expected)
    assert largest <= 1e-6


def test_a_term_without_a_gradient_is_named(small, teacher):
    config = small()
    student = cut(teacher.unet.state_dict(), TINY_KOALA_700M, TINY_SDXL)
    step = DistillationStep(
        config,
        teacher.unet,
        feature_pairs(config, TINY_KOALA_700M, TINY_SDXL),
        alphas_cumprod(teacher.scheduler.config),
    )
    batch, draws = batch_and_draws(config)
    with step.hooked(student) as losses_of:
        check_gradients(losses_of(student, batch, draws), student)
    layer = student.up_blocks[1].attentions[1].transformer_blocks[0].attn1
    layer.register_forward_hook(lambda module, inputs, output: output.detach())  # before our hook: it sees this one
    broken = r"SA of UP-2 \(up_blocks.1.attentions.1.transformer_blocks.0.attn1\)"
    with step.hooked(student) as losses_of, pytest.raises(BrokenLoss, match=broken):
        check_gradients(losses_of(student, batch, draws), student)


@pytest.mark.parametrize("settings", [{}, BK_LOSS])
def test_gradient_checkpointing_changes_no_gradient(small, teacher, settings):
    config = small(**settings)
    gradients = []
    for checkpointing in (False, True):
        student = cut(teacher.unet.state_dict(), TINY_KOALA_700M, TINY_SDXL).train()
        if checkpointing:
            student.enable_gradient_checkpointing()
        step = DistillationStep(
            config,
            teacher.unet,
            feature_pairs(config, TINY_KOALA_700M, TINY_SDXL),
            alphas_cumprod(teacher.scheduler.config),
        )
        with step.hooked(student) as losses_of:
            losses_of(student, *batch_and_draws(config)).total.backward()
        gradients.append({n: p.grad for n, p in student.named_parameters()})
    differences = [(a - gradients[1][n]).abs().max().item() for n, a in gradients[0].items()]
    print(f"max difference {max(differences):.3g}, mean {sum(differences) / len(differences):.3g}")
    assert max(differences) <= 1e-6


def test_a_loss_that_is_not_finite_names_its_term_and_layer(small, teacher):
    config = small()
    student = cut(teacher.unet.state_dict(), TINY_KOALA_700M, TINY_SDXL)
    step = DistillationStep(
        config,
        teacher.unet,
        feature_pairs(config, TINY_KOALA_700M, TINY_SDXL),
        alphas_cumprod(teacher.scheduler.config),
    )
    with torch.no_grad():
        student.up_blocks[1].attentions[1].transformer_blocks[1].attn1.to_out[0].bias[0] = float("nan")
    with step.hooked(student) as losses_of:
        losses = losses_of(student, *batch_and_draws(config))
    with pytest.raises(BrokenLoss, match=r"step 7: the SA term of UP-2 \(up_blocks.1.attentions.1.*1.attn1\)"):
        losses.check(7)


def test_a_teacher_that_predicts_something_else_is_refused():
    with pytest.raises(ValueError, match="predicts 'v_prediction'"):
        alphas_cumprod({"prediction_type": "v_prediction"})
