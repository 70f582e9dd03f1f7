"""A LoRA of the teacher itself as the student: one network for both, and a file that other programs read."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.utils import DistributedType
from diffusers import UNet2DConditionModel
from diffusers.loaders.lora_conversion_utils import _convert_non_diffusers_lora_to_diffusers
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file

from koala.distill.config import DistillConfig
from koala.distill.draws import generator
from koala.distill.optimizers import Ema, build_optimizers, learning
from koala.distill.run.folder import RunFolder
from koala.distill.run.preflight import check
from koala.distill.run.student_folder import check_student
from koala.distill.trainer import train
from koala.distill.validation import Validator
from koala.errors import UserError
from koala.evaluate.drawing import draw
from koala.lora.training import TARGETS, as_file, attach, initialise, targets, without
from koala.models.cards import CARDS, EMBEDDED
from koala.models.library import Library
from koala.models.registry import find
from koala.request import GenerationRequest
from koala.sampling.resolve import resolve
from koala.unet.specs import TINY_KOALA_700M, TINY_SDXL

LORA = dict(
    method="phased",
    student_spec="sdxl",
    phases=2,
    lora_rank=4,
    min_snr_gamma=0.0,
    empty_prompts=0.0,
    guidance_min=2.0,
    guidance_max=2.0,
    learning_rate=1e-2,
)


@pytest.fixture(scope="module")
def network() -> UNet2DConditionModel:
    """tiny-sdxl's U-Net, its factors as they are first."""
    unet = UNet2DConditionModel.from_pretrained(EMBEDDED / "tiny-sdxl" / "unet", dtype=torch.float32)
    attach(unet, 4, 8.0)
    initialise(unet, generator("test"))
    return unet


def given(seed: int = 0) -> tuple:
    source = torch.Generator().manual_seed(seed)
    sizes = torch.zeros(1, 6)
    pooled = torch.randn(1, TINY_SDXL.pooled_dim, generator=source)
    context = torch.randn(1, 77, TINY_SDXL.cross_attention_dim, generator=source)
    noisy = torch.randn(1, 4, 8, 8, generator=source)
    return (noisy, torch.tensor([500]), context), {"added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes}}


@torch.no_grad()
def test_a_layer_with_its_factors_is_the_layer_with_their_product_in_its_weight(network):
    """LoRA (Hu et al. 2021): W + alpha / r B A, of linear layers and of convolutions with stride and padding."""
    source = torch.Generator().manual_seed(1)
    down = network.down_blocks[0].downsamplers[0].conv
    for layer, shape in (
        (network.down_blocks[1].attentions[0].transformer_blocks[0].attn2.to_k, (2, 77, TINY_SDXL.cross_attention_dim)),
        (network.up_blocks[0].resnets[0].conv1, (2, network.up_blocks[0].resnets[0].conv1.in_channels, 6, 6)),
        (network.up_blocks[0].resnets[0].conv_shortcut, (2, network.up_blocks[0].resnets[0].conv1.in_channels, 6, 6)),
        (down, (2, down.in_channels, 6, 6)),
    ):
        up = layer.lora_up.weight
        before = up.clone()
        up.copy_(torch.randn(up.shape, generator=source))
        x = torch.randn(shape, generator=source)
        product = (up.flatten(1) @ layer.lora_down.weight.flatten(1)).view(layer.weight.shape)
        weight = layer.weight + 8.0 / 4 * product
        if isinstance(layer, torch.nn.Linear):
            wanted = torch.nn.functional.linear(x, weight, layer.bias)
        else:
            wanted = torch.nn.functional.conv2d(x, weight, layer.bias, layer.stride, layer.padding)
        torch.testing.assert_close(layer(x), wanted, rtol=1e-4, atol=1e-4)
        with without(network):
            assert not torch.allclose(layer(x), wanted, atol=1e-2)
        up.copy_(before)


@torch.no_grad()
def test_training_begins_at_the_teacher_and_off_it_is_the_teacher(network):
    inputs, more = given()
    plain = UNet2DConditionModel.from_pretrained(EMBEDDED / "tiny-sdxl" / "unet", dtype=torch.float32)
    wanted = plain(*inputs, **more).sample
    assert torch.equal(network(*inputs, **more).sample, wanted)  # `up` is 0
    ups = [p for name, p in network.named_parameters() if name.endswith("lora_up.weight")]
    for up in ups:
        up.fill_(0.01)
    assert not torch.allclose(network(*inputs, **more).sample, wanted, atol=1e-3)
    with without(network):
        assert torch.equal(network(*inputs, **more).sample, wanted)
    assert not torch.allclose(network(*inputs, **more).sample, wanted, atol=1e-3)
    for up in ups:
        up.zero_()
    with without(plain):  # has no factors
        assert torch.equal(plain(*inputs, **more).sample, wanted)


def test_every_linear_layer_and_convolution_of_the_blocks_is_adapted_and_alone_learns(network):
    kinds = (torch.nn.Linear, torch.nn.Conv2d)
    inside = {n for n, m in network.named_modules() if isinstance(m, kinds) and "_blocks." in n or n.startswith("mid_")}
    layers = {n for n in inside if isinstance(network.get_submodule(n), kinds) and ".lora_" not in n}
    assert targets(network).keys() == layers and len(layers) == 788
    assert {name for name in TARGETS if not any(layer.endswith(f".{name}") for layer in layers)} == set()
    names = {name for name, _ in learning(network)}
    assert names == {f"{layer}.lora_{side}.weight" for layer in layers for side in ("down", "up")}
    assert all(p.dtype == torch.float32 for _, p in learning(network))
    assert {p.numel() for o in build_optimizers(network, DistillConfig()) for g in o.param_groups for p in g["params"]}
    assert Ema(network, 0.9).weights.keys() == names


def test_other_programs_find_every_layer_of_the_file(network):
    """diffusers' own reader of kohya's names, and its scale."""
    factors = {name: torch.ones_like(p) for name, p in learning(network)}
    tensors, metadata = as_file(factors, 8.0, TINY_SDXL, {"defaults": {}})
    assert metadata["format"] == "pt" and "koala_student" not in metadata
    read, alphas = _convert_non_diffusers_lora_to_diffusers(dict(tensors))
    assert len(read) == 2 * 788 and set(alphas.values()) == {8.0}
    _, file_metadata = as_file(factors, 8.0, TINY_KOALA_700M, {})
    assert (
        file_metadata["koala_student"] == TINY_KOALA_700M.notation
    )  # nothing else tells it from a LoRA of the teacher


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"method": "koala", "phases": 4, "guidance_min": 0.0, "guidance_max": 0.0}, "method=koala teaches a smaller"),
        ({"student_init": "tiny-sdxl"}, "leave student_init empty"),
        ({"optimizer": "muon", "precision": "fp32"}, "choose optimizer=adamw"),
        ({"target": "ema"}, "choose target=student"),
        ({"precision": "fp32"}, "choose precision=bf16"),
        ({"lora_alpha": 0.0}, "lora_alpha must be above 0"),
        ({"lora_rank": 0, "lora_alpha": 4.0}, "set lora_rank=64, or leave it out"),
    ],
)
def test_what_a_lora_does_not_go_with_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        DistillConfig(**LORA | settings)


def test_a_smaller_student_is_refused_and_so_is_fsdp():
    with pytest.raises(UserError, match=r"; choose student_spec=\S+, or lora_rank=0") as refused:
        check_student(DistillConfig(**LORA | {"student_spec": "koala-700m"}))
    spec = str(refused.value).split("student_spec=")[1].split(", or ")[0]
    check_student(DistillConfig(**LORA | {"student_spec": spec}))

    class Sharded:
        distributed_type, num_processes, device = DistributedType.FSDP, 1, torch.device("cpu")

    with pytest.raises(UserError, match=r"ddp-8\.json"):
        check(DistillConfig(**LORA), Sharded())


@pytest.fixture(scope="module")
def run(small, tmp_path_factory) -> RunFolder:
    """One of two steps, saved after each."""
    folder = RunFolder(path=tmp_path_factory.mktemp("lora") / "run")
    train(folder, small(**LORA | {"checkpoint_every": 1}))
    return folder


@pytest.mark.slow
def test_the_student_is_the_teacher_with_the_file_in_it(run):
    """W + alpha / r B A in fp32, rounded once to the teacher's half precision; all other tensors are the teacher's."""
    weights = load_file(run.student / "unet" / "diffusion_pytorch_model.safetensors")
    teacher = load_file(EMBEDDED / "tiny-sdxl" / "unet" / "diffusion_pytorch_model.safetensors")
    lora = load_file(run.lora)
    assert weights.keys() == teacher.keys()
    changed = 0
    for name, before in teacher.items():
        key = f"lora_unet_{name.removesuffix('.weight').replace('.', '_')}"
        wanted = before
        if f"{key}.alpha" in lora:
            up, down = (lora[f"{key}.lora_{side}.weight"].flatten(1) for side in ("up", "down"))
            assert lora[f"{key}.alpha"].item() == 8 and up.dtype == torch.float32 and down.shape[0] == 4
            wanted = (before.float() + 2.0 * (up @ down).view(before.shape)).to(before.dtype)
            changed += not torch.equal(wanted, before)
        torch.testing.assert_close(weights[name], wanted, rtol=1e-3, atol=1e-6)
    assert changed > 700
    averaged = load_file(run.checkpoint(2) / "ema.safetensors")
    name = "mid_block.attentions.0.proj_in.lora_up.weight"
    assert torch.equal(averaged[name], lora["lora_unet_mid_block_attentions_0_proj_in.lora_up.weight"])


@pytest.mark.slow
def test_the_file_says_how_it_is_drawn_with_and_requests_follow(run):
    with safe_open(run.lora, "pt") as file:
        drawing = json.loads(file.metadata()["koala_drawing"])
    assert drawing["defaults"] | {"width": 0, "height": 0} == {
        "scheduler": "euler-trailing", "steps": 2, "guidance": 0.0, "width": 0, "height": 0,
    }  # fmt: skip
    card = CARDS["tiny-sdxl"]
    request = GenerationRequest(model="tiny-sdxl", prompt="a red circle", lora=str(run.lora))
    few = resolve(request, card)
    assert (few.steps, few.guidance, few.scheduler) == (2, 0.0, "euler-trailing")
    own = resolve(dataclasses.replace(request, steps=7, guidance=3.0), card)
    assert (own.steps, own.guidance, own.scheduler) == (7, 3.0, "euler-trailing")
    off = resolve(dataclasses.replace(request, lora_strength=0.0), card)
    assert (off.steps, off.guidance, off.scheduler) == (card.steps, card.guidance, card.scheduler)
    student_card = find(str(run.student))
    assert (student_card.steps, student_card.guidance, student_card.scheduler, student_card.noising) == (
        2,
        0.0,
        "euler-trailing",
        "straight",
    )


@pytest.mark.slow
def test_a_resumed_lora_ends_with_the_very_same_factors(run, small, tmp_path):
    parted, config = RunFolder(path=tmp_path / "parted"), run.config()
    train(parted, dataclasses.replace(config, num_steps=1))
    train(parted, config, resume_from=1)
    for file in ("student.safetensors", "ema.safetensors", "optimizer.safetensors"):
        expected, resumed = (load_file(each.checkpoint(2) / file) for each in (run, parted))
        assert expected.keys() == resumed.keys() and all(
            torch.equal(expected[name], resumed[name]) for name in expected
        )
    assert run.lora.read_bytes() == parted.lora.read_bytes()


@pytest.mark.slow
def test_validation_changes_nothing_of_the_training(run, small, tmp_path):
    """The moving average is validated in the one network that there is, which then goes on as it was."""
    watched = RunFolder(path=tmp_path / "watched")
    settings = {"checkpoint_every": 1, "validate_every": 1, "validation_prompts": ("a red circle",)}
    train(watched, small(**LORA | settings))
    for file in ("student.safetensors", "ema.safetensors"):
        expected, validated = (load_file(each.checkpoint(2) / file) for each in (run, watched))
        assert all(torch.equal(expected[name], validated[name]) for name in expected)
    few = GenerationRequest(
        model="tiny-sdxl", prompt="a red circle", seed=0, width=128, height=128, steps=2, guidance=0.0,
        scheduler="euler-trailing", negative_prompt="",
    )  # fmt: skip
    (wanted,) = draw(Library("cpu", dtype="float32").get("tiny-sdxl"), [resolve(few, CARDS["tiny-sdxl"])])
    before, after = (Image.open(watched.samples / f"{name}-0.png") for name in ("before", "step-2"))
    assert np.array_equal(before, wanted.images[0]) and not np.array_equal(after, before)


def test_after_a_validation_on_a_gpu_the_factors_learn_and_are_what_they_were(network):
    """Drawing moves a U-Net between host and card under inference mode; no gradient goes through such weights."""
    residence = SimpleNamespace(bring=lambda parts: None)
    validator = Validator(
        None,
        DistillConfig(**LORA),
        None,
        SimpleNamespace(teacher=network),
        SimpleNamespace(library=SimpleNamespace(residence=residence)),
        SimpleNamespace(pipeline=SimpleNamespace(unet=network)),
        lambda: None,
    )
    before = {name: p.detach().clone() for name, p in learning(network)}
    parameters = list(network.parameters())
    validator.show({name: p + 1 for name, p in before.items()})
    name = "mid_block.attentions.0.proj_in.lora_up.weight"
    assert torch.equal(network.get_parameter(name), before[name] + 1)
    with torch.inference_mode():
        network.double().float()  # every weight is another tensor, as after a move
    inputs, more = given()
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        network(*inputs, **more)
    validator.rest()
    network(*inputs, **more).sample.square().mean().backward()
    assert all(p.grad is not None for _, p in learning(network)) and network.get_parameter(name).grad.any()
    network.zero_grad()
    assert all(torch.equal(p, before[name]) for name, p in learning(network))
    assert all(a is b for a, b in zip(parameters, network.parameters(), strict=True))  # as the optimizers know them
