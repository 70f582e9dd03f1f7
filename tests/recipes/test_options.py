"""Ways to a faster U-Net: each does what its name says while it is on, and leaves nothing behind."""

import numpy as np
import pytest
import torch
from diffusers.models.attention_processor import Attention

from koala.unet.specs import KOALA_700M, SDXL
from recipes.measure import options

SIDE = 16


@pytest.fixture(scope="module")
def unet(library):
    return library.get("tiny-koala-700m").pipeline.unet


@pytest.fixture
def call(unet):
    """One call of the network on fixed inputs, and its answer."""
    noise = torch.Generator().manual_seed(0)
    x, text, pooled = (
        torch.randn(shape, generator=noise)
        for shape in (
            (1, 4, SIDE, SIDE),
            (1, 77, unet.config.cross_attention_dim),
            (1, unet.config.projection_class_embeddings_input_dim - 6 * unet.config.addition_time_embed_dim),
        )
    )
    ids = torch.tensor([[256.0, 256, 0, 0, 256, 256]])

    @torch.inference_mode()
    def answer(at: int = 500) -> torch.Tensor:
        return unet(x, at, text, added_cond_kwargs={"text_embeds": pooled, "time_ids": ids}).sample

    return answer


@pytest.mark.parametrize("name", [n for n in options.OPTIONS if n != "compiled blocks"])
def test_an_option_leaves_the_network_as_it_was(name, unet, call):
    before, layout = call(), unet.conv_in.weight.is_contiguous()
    with options.OPTIONS[name][0](unet):
        call()
    assert torch.equal(call(), before)
    assert unet.conv_in.weight.is_contiguous() == layout and "forward" not in vars(unet.down_blocks[1])


def test_fused_projections_are_the_same_products(unet, call):
    before = call()
    with options.fused_qkv(unet):
        layers = [m for m in unet.modules() if isinstance(m, Attention)]
        assert layers and all(
            m.fused_projections and hasattr(m, "to_kv" if m.is_cross_attention else "to_qkv") for m in layers
        )
        assert torch.allclose(call(), before, atol=1e-5)


def test_channels_last_is_a_layout(unet, call):
    before = call()
    with options.channels_last(unet):
        assert unet.conv_in.weight.stride(1) == 1
        assert torch.allclose(call(), before, atol=1e-5)


def test_float8_has_the_numbers_of_the_format():
    """e4m3fn as its authors define it (Micikevicius et al. 2022): 1.m x 2^(e-7), 2^-9 steps below 2^-6, 448 at most."""
    numbers = [m / 8 * 2**-6 for m in range(8)] + [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)]
    numbers = np.array([n for n in numbers if n <= 448])
    drawn = torch.randn(5, 300, generator=torch.Generator().manual_seed(0))
    drawn[:, 0] = 7.0  # the largest of its row, which becomes 448
    for row, result in zip(drawn.numpy(), options.rounded_to_float8(drawn).numpy(), strict=True):
        scaled = np.abs(row) * 448 / 7
        nearest = numbers[np.abs(scaled[:, None] - numbers).argmin(1)]
        assert np.allclose(np.abs(result) * 448 / 7, nearest, rtol=1e-5)
        assert (np.sign(result) * np.sign(row) >= 0).all()


def test_deep_features_are_computed_at_every_nth_call_only(unet, call):
    counts = {"deep": 0, "fine": 0}
    hooks = [
        block.register_forward_hook(lambda *_, k=kind: counts.__setitem__(k, counts[k] + 1))
        for block, kind in ((unet.down_blocks[1].resnets[0], "deep"), (unet.up_blocks[-1].resnets[0], "fine"))
    ]
    plain = [call(at) for at in (900, 600, 300, 100, 50)]
    counts.update(deep=0, fine=0)
    with options.reused(3)(unet):
        result = [call(at) for at in (900, 600, 300, 100, 50)]
    for hook in hooks:
        hook.remove()
    assert counts == {"deep": 2, "fine": 5}
    assert [torch.equal(a, b) for a, b in zip(result, plain, strict=True)] == [True, False, False, True, False]


def test_an_interval_of_paired_differences_has_the_width_of_theory():
    """Of n differences of 0 and 1: p +- 1.96 sqrt(p (1 - p) / n)."""
    low, high = options.bootstrapped([1] * 40 + [0] * 160)
    half = 1.96 * (0.2 * 0.8 / 200) ** 0.5
    assert low == pytest.approx(0.2 - half, abs=0.01) and high == pytest.approx(0.2 + half, abs=0.01)
    assert options.bootstrapped([0] * 50) == [0.0, 0.0]


def test_the_arithmetic_of_full_size_adds_up():
    """SDXL has 70 transformer blocks, KOALA-700M 21 (paper, tables 1 and 2)."""
    for spec, blocks, gigabytes in ((SDXL, 70, "2.6 GB"), (KOALA_700M, 21, "0.8 GB")):
        result = options.arithmetic(spec)
        assert f"{3 * blocks} fewer" in result["fused QKV"]["why"] and gigabytes in result["FP8 weights"]["why"]
        assert result["no guidance"]["saves_at_most"] == 0.5
        second, third = (result[f"deep features every {n} step"]["saves_at_most"] for n in ("2nd", "3rd"))
        assert 0 < second < 0.5 and third == pytest.approx(4 / 3 * second, abs=2e-3)
    assert set(result) == set(options.OPTIONS) | set(options.UNDRAWN)
