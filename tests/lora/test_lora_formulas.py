"""Every format's change against its formula, written out here in float64; weights during and after a run."""

import copy
import json

import pytest
import torch
from safetensors.torch import save_file

from koala.errors import UserError
from koala.lora.files import read_lora
from koala.lora.formulas import change
from koala.lora.moving import layers_for
from koala.request import GenerationRequest
from koala.sampling.adapters import adapted, changed, fuse
from koala.unet.specs import TINY_KOALA_700M, TINY_SDXL

LINEAR = "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj"  # 256 x 32
SQUARE = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"  # 32 x 32, without a bias
CONVOLUTION = "down_blocks.1.resnets.0.conv1"  # 32 x 16 x 3 x 3
NORM = "down_blocks.1.resnets.0.norm1"
ALPHA, RANK = 3.0, 2


@pytest.fixture(scope="module")
def teacher(library):
    return library.get("tiny-sdxl")


def random(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))) * 0.1


def shape_of(teacher, module):
    return tuple(teacher.pipeline.unet.get_parameter(f"{module}.weight").shape)


def plain(shape):
    down, up = random(RANK, *shape[1:]), random(shape[0], RANK, *[1] * (len(shape) - 2))
    return {"lora_down.weight": down, "lora_up.weight": up}, torch.tensordot(
        up.double().reshape(shape[0], RANK), down.double(), 1
    )


def locon(shape):
    down, core, up = random(RANK, shape[1], 1, 1), random(RANK, RANK, *shape[2:]), random(shape[0], RANK, 1, 1)
    delta = torch.zeros(shape, dtype=torch.float64)
    for r in range(RANK):
        for s in range(RANK):
            outer = up.double()[:, r, 0, 0, None] * down.double()[s, :, 0, 0]
            delta += outer[..., None, None] * core.double()[r, s]
    return {"lora_down.weight": down, "lora_mid.weight": core, "lora_up.weight": up}, delta


def loha(shape):
    parts, factors = {}, []
    for k in "12":
        a, b = random(shape[0], RANK), random(RANK, shape[1] * 9 if len(shape) > 2 else shape[1]) + int(k)
        parts |= {f"hada_w{k}_a": a, f"hada_w{k}_b": b}
        factors.append(a.double() @ b.double())
    return parts, (factors[0] * factors[1]).reshape(shape)


def loha_tucker(shape):
    parts, factors = {}, []
    for k in "12":
        core, a, b = random(RANK, RANK, *shape[2:]) + int(k), random(RANK, shape[0]), random(RANK, shape[1])
        parts |= {f"hada_t{k}": core, f"hada_w{k}_a": a, f"hada_w{k}_b": b}
        whole = torch.zeros(shape, dtype=torch.float64)
        for i in range(RANK):
            for j in range(RANK):
                whole += (a.double()[i, :, None] * b.double()[j])[..., None, None] * core.double()[i, j]
        factors.append(whole)
    return parts, factors[0] * factors[1]


def blocks(first, second, shape):
    """The Kronecker product block by block."""
    rows = [torch.cat([first[i, j] * second for j in range(first.shape[1])], 1) for i in range(first.shape[0])]
    return torch.cat(rows, 0).reshape(shape)


def lokr(shape):
    first, second = random(4, 4), random(shape[0] // 4, shape[1] // 4, *shape[2:])
    return {"lokr_w1": first, "lokr_w2": second}, blocks(first.double(), second.double(), shape)


def lokr_of_low_rank(shape):
    first, a, b = random(4, 4), random(shape[0] // 4, RANK), random(RANK, shape[1] // 4)
    return {"lokr_w1": first, "lokr_w2_a": a, "lokr_w2_b": b}, blocks(first.double(), a.double() @ b.double(), shape)


def whole(shape):
    delta = random(*shape)
    return {"diff": delta}, delta.double()


# format -> (module, tensors and change, whether alpha / rank scales it)
FORMATS = {
    "LoRA": (LINEAR, plain, True),
    "LoRA of a convolution": (CONVOLUTION, plain, True),
    "LoCon with a core": (CONVOLUTION, locon, True),
    "LoHa": (LINEAR, loha, True),
    "LoHa of a convolution": (CONVOLUTION, loha, True),
    "LoHa with a core": (CONVOLUTION, loha_tucker, True),
    "LoKr": (LINEAR, lokr, False),
    "LoKr of a convolution": (CONVOLUTION, lokr, False),
    "LoKr of low rank": (SQUARE, lokr_of_low_rank, True),
    "diff": (CONVOLUTION, whole, False),
}


def write(file, module, parts, alpha=ALPHA):
    name = f"lora_unet_{module.replace('.', '_')}"
    tensors = {f"{name}.{part}": tensor for part, tensor in parts.items()}
    save_file(tensors | ({} if alpha is None else {f"{name}.alpha": torch.tensor(alpha)}), file)
    return file


def during(teacher, file, name, strength=1.0):
    """(weight before, weight while the LoRA is on), and the weight is the same afterwards, to the bit."""
    asked = GenerationRequest(model="tiny-sdxl", prompt="a star", lora=str(file), lora_strength=strength)
    parameter = teacher.pipeline.unet.get_parameter(name)
    before = parameter.detach().clone()
    with adapted(teacher, asked) as report:
        inside = parameter.detach().clone()
    assert report.coverage == 1 and torch.equal(parameter, before)
    return before.double(), inside.double()


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("alpha", [ALPHA, 0.0, None])
def test_the_change_is_the_formula_of_its_format(teacher, tmp_path, kind, alpha):
    module, make, scaled = FORMATS[kind]
    parts, delta = make(shape_of(teacher, module))
    scale = 1.0 if alpha is None or not scaled else alpha / RANK
    before, inside = during(teacher, write(tmp_path / "l.safetensors", module, parts, alpha), f"{module}.weight", 0.5)
    expected = 0.5 * scale * delta
    if not scale:
        assert torch.equal(before, inside)
    assert (inside - before - expected).abs().max() <= 1e-6 * max(1, expected.abs().max())
    assert bool(expected.abs().max() > 1e-3) is bool(scale)


@pytest.mark.parametrize("module", [LINEAR, SQUARE, CONVOLUTION])
@pytest.mark.parametrize("style", ["per output", "per input", "peft"])
def test_dora_is_a_direction_times_a_magnitude(teacher, tmp_path, module, style):
    """strength x (m (W + dW) / |W + dW| - W)."""
    parts, delta = plain(shape_of(teacher, module))
    weight = teacher.pipeline.unet.get_parameter(f"{module}.weight").detach().double()
    scale = 1.0 if style == "peft" else ALPHA / RANK
    moved = weight + scale * delta
    axis = 1 if style == "per input" else 0
    norm = torch.stack([row.norm() for row in moved.unbind(axis)])
    old = torch.stack([row.norm() for row in weight.unbind(axis)]) * 1.3
    shape = [-1 if d == axis else 1 for d in range(weight.ndim)]
    expected = 0.7 * (old.reshape(shape) * moved / norm.reshape(shape) - weight)
    file = tmp_path / "l.safetensors"
    if style == "peft":
        names = {"lora_A.weight": parts["lora_down.weight"], "lora_B.weight": parts["lora_up.weight"]}
        names["lora_magnitude_vector"] = old.float()
        save_file({f"unet.{module}.{name}": tensor for name, tensor in names.items()}, file)
    else:
        write(file, module, parts | {"dora_scale": old.float().reshape(shape)})
    before, inside = during(teacher, file, f"{module}.weight", 0.7)
    assert (inside - before - expected).abs().max() <= 2e-6 * max(1, expected.abs().max())


def test_rslora_divides_by_the_square_root_of_the_rank(teacher, tmp_path):
    parts, delta = plain(shape_of(teacher, SQUARE))
    names = {f"unet.{SQUARE}.lora_A.weight": parts["lora_down.weight"]}
    names[f"unet.{SQUARE}.lora_B.weight"] = parts["lora_up.weight"]
    for stable, scale in ((False, ALPHA / RANK), (True, ALPHA / RANK**0.5)):
        settings = {"unet.lora_alpha": ALPHA, "unet.use_rslora": stable}
        save_file(names, tmp_path / "l.safetensors", metadata={"lora_adapter_metadata": json.dumps(settings)})
        before, inside = during(teacher, tmp_path / "l.safetensors", f"{SQUARE}.weight")
        assert (inside - before - scale * delta).abs().max() <= 1e-6


def test_pefts_own_folder_has_its_scale_beside_the_file(teacher, tmp_path):
    parts, delta = plain(shape_of(teacher, SQUARE))
    names = {f"base_model.model.{SQUARE}.lora_A.default_0.weight": parts["lora_down.weight"]}
    names[f"base_model.model.{SQUARE}.lora_B.default_0.weight"] = parts["lora_up.weight"]
    save_file(names, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA}))
    before, inside = during(teacher, tmp_path / "adapter_model.safetensors", f"{SQUARE}.weight")
    assert (inside - before - ALPHA / RANK * delta).abs().max() <= 1e-6


def test_biases_and_norms_change_where_the_layer_has_them(teacher, tmp_path):
    parts, _ = plain(shape_of(teacher, CONVOLUTION))
    bias, norm = random(32), random(16)
    name = f"lora_unet_{NORM.replace('.', '_')}"
    file = write(tmp_path / "l.safetensors", CONVOLUTION, parts | {"diff_b": bias})
    before, inside = during(teacher, file, f"{CONVOLUTION}.bias", 2.0)
    assert (inside - before - 2 * bias).abs().max() < 1e-6
    save_file({f"{name}.w_norm": norm, f"{name}.b_norm": -norm}, file)
    before, inside = during(teacher, file, f"{NORM}.weight")
    assert (inside - before - norm).abs().max() < 1e-6
    before, inside = during(teacher, file, f"{NORM}.bias")
    assert (inside - before + norm).abs().max() < 1e-6
    parts, _ = plain(shape_of(teacher, SQUARE))
    _, report = layers_for(write(file, SQUARE, parts | {"diff_b": bias}), TINY_SDXL)
    assert report.skipped == (f"the bias of {SQUARE}, which has none",) and "1 other tensor skipped" in report.summary


@pytest.mark.parametrize("stored", [torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2], ids=str)
def test_a_file_in_few_bits_is_computed_in_fp32(teacher, tmp_path, stored):
    parts, _ = plain(shape_of(teacher, SQUARE))
    few = {name: tensor.to(stored) for name, tensor in parts.items()}
    exact = few["lora_up.weight"].double() @ few["lora_down.weight"].double() * ALPHA / RANK
    before, inside = during(teacher, write(tmp_path / "l.safetensors", SQUARE, few), f"{SQUARE}.weight")
    assert (inside - before - exact).abs().max() <= 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_the_sum_in_half_precision_is_the_nearest_value(teacher, tmp_path, dtype):
    parts, delta = plain(shape_of(teacher, LINEAR))
    layers, _ = layers_for(write(tmp_path / "l.safetensors", LINEAR, parts), TINY_SDXL)
    unet = torch.nn.Module()
    weight = teacher.pipeline.unet.get_parameter(f"{LINEAR}.weight").detach().to(dtype)
    unet.get_parameter = {f"{LINEAR}.weight": torch.nn.Parameter(weight, requires_grad=False)}.get
    ((_, result),) = changed(unet, layers, 0.5)
    exact = weight.double() + 0.5 * ALPHA / RANK * delta
    assert result.dtype == dtype
    for neighbour in (torch.nextafter(result, torch.full_like(result, side)) for side in (-1e4, 1e4)):
        assert ((result.double() - exact).abs() <= (neighbour.double() - exact).abs() + 1e-7).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_the_sum_is_the_formula_s_to_the_bit(dtype):
    """The product, then its scale, then the sum, each in fp32: whoever follows the format's formula has these bits."""
    down, up = ((random(*shape) * 100).round() / 64 for shape in ((3, 1024), (700, 3)))  # their product is exact
    weight = random(700, 1024).to(dtype)  # more than one part of rows
    unet = torch.nn.Module()
    unet.get_parameter = {"layer.weight": torch.nn.Parameter(weight, requires_grad=False)}.get
    ((_, result),) = changed(unet, {"layer": {"down": down, "up": up, "alpha": torch.tensor(1.0)}}, 1.0)
    assert torch.equal(result, (weight.float() + up @ down * (1 / 3)).to(dtype))


@pytest.mark.parametrize("per_input", [False, True])
def test_a_small_change_of_dora_is_not_lost_between_two_large_numbers(per_input):
    weight, down, up = random(300, 1024), random(RANK, 1024) * 0.01, random(300, RANK) * 0.01
    dim = 0 if per_input else 1
    moved = weight.double() + up.double() @ down.double()
    magnitude = weight.norm(dim=dim, keepdim=True) * 1.001
    expected = magnitude.double() * moved / moved.norm(dim=dim, keepdim=True) - weight.double()
    result = change({"down": down, "up": up, "dora_scale": magnitude}, weight)
    assert result.dtype == torch.float32
    assert (result - expected).abs().max() <= 1e-7 * expected.abs().max()


def test_layers_of_one_file_have_ranks_and_alphas_of_their_own(teacher, tmp_path):
    """A resized LoRA: alpha is the rank of each layer. Its layers had the most common alpha of all."""
    tensors, expected = {}, {}
    for k, module in enumerate((SQUARE, SQUARE.replace("to_q", "to_k"), SQUARE.replace("to_q", "to_v"))):
        down, up = random(2**k, 32), random(32, 2**k)
        name = f"lora_unet_{module.replace('.', '_')}"
        tensors |= {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        tensors[f"{name}.alpha"] = torch.tensor(float([1, 1, 4][k]))
        expected[module] = up.double() @ down.double() * [1, 0.5, 1][k]
    save_file(tensors, tmp_path / "l.safetensors")
    for module, delta in expected.items():
        before, inside = during(teacher, tmp_path / "l.safetensors", f"{module}.weight")
        assert (inside - before - delta).abs().max() <= 1e-6


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_value_that_is_not_finite_is_refused_by_its_key(tmp_path, value):
    parts, _ = plain((32, 32))
    parts["lora_up.weight"][3, 1] = value
    with pytest.raises(UserError, match=r"to_q\.lora_up\.weight in .* holds NaN or infinity; download it again"):
        read_lora(write(tmp_path / "l.safetensors", SQUARE, parts))


def test_what_changes_no_layer_is_told(tmp_path):
    parts, _ = plain((32, 32))
    file = write(tmp_path / "l.safetensors", SQUARE, parts)
    others = {
        "bundle_emb.mystyle.clip_l": random(2, 32),
        f"lora_unet_{CONVOLUTION.replace('.', '_')}.alpha": torch.tensor(2.0),
        "clip_l.transformer.text_model.encoder.layers.0.mlp.fc1.lora_up.weight": random(64, 2),
        "te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": random(2, 32),
    }
    save_file(read_lora(file) | others, file)
    _, report = layers_for(file, TINY_SDXL)
    assert report.text_keys == 2 and set(report.skipped) == set(list(others)[:2])
    assert report.summary == (
        "1 of its 1 U-Net layers (100%), 2 text-encoder tensors not used, 2 other tensors skipped"
    )


def test_a_student_s_own_lora_in_original_numbers_stays_where_it_is(tmp_path):
    """The student's second block of UP-1 is the teacher's third: only the student has this name for such a width."""
    name = "lora_unet_output_blocks_3_1_transformer_blocks_0_attn1_to_q"  # UP-2's first block; the teacher's is 3 too
    file = tmp_path / "l.safetensors"
    save_file({f"{name}.lora_down.weight": random(2, 32), f"{name}.lora_up.weight": random(32, 2)}, file)
    layers, _ = layers_for(file, TINY_SDXL)
    assert list(layers) == ["up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"]
    name = "lora_unet_output_blocks_2_1_transformer_blocks_0_attn1_to_q"
    save_file({f"{name}.lora_down.weight": random(2, 32), f"{name}.lora_up.weight": random(32, 2)}, file)
    layers, report = layers_for(file, TINY_KOALA_700M)  # 64 wide in the teacher, 32 in the student
    assert list(layers) == ["up_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"]
    assert report.teacher == "tiny-koala-700m"


def test_fused_weights_are_those_of_a_run(teacher, tmp_path):
    parts, delta = plain(shape_of(teacher, LINEAR))
    file = write(tmp_path / "l.safetensors", LINEAR, parts)
    _, inside = during(teacher, file, f"{LINEAR}.weight", 0.5)
    unet = copy.deepcopy(teacher.pipeline.unet)
    fuse(unet, file, TINY_SDXL, 0.5)
    assert torch.equal(unet.get_parameter(f"{LINEAR}.weight").double(), inside)
