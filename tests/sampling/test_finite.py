"""NaN and infinity never become a picture or a number: the error names the cause, and its remedy works."""

import dataclasses
import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import EulerDiscreteScheduler
from safetensors.torch import load_file, save_file

from koala.attention.together import prepare
from koala.cli.main import main
from koala.distill.data.encoders import Encoders
from koala.errors import UserError
from koala.evaluate.agreement import conditioning, predict
from koala.evaluate.drawing import draw
from koala.evaluate.similarity import similarities
from koala.files.tensorfiles import stored_tensors
from koala.finite import NotFinite, is_finite, require_finite
from koala.models.from_torch import shared_part
from koala.models.layout import Weights
from koala.models.library import Library
from koala.models.locate import Location
from koala.models.networks import read_network
from koala.models.schedulers import build_for_run
from koala.request import SCHEDULERS, GenerationRequest
from koala.sampling.decoding import decode
from koala.sampling.generate import generate, resolve

TEACHER, STUDENT = "tiny-sdxl", "tiny-koala-700m"
LAYER = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"  # of teacher and student
WEIGHT = f"{LAYER}.weight"
NAN = float("nan")
UNET, VAE = "unet/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"


def request(model=STUDENT, **change):
    return GenerationRequest(
        **dict(model=str(model), prompt="a red circle", steps=1, guidance=1.0, width=64, height=64) | change
    )


@pytest.fixture(scope="module")
def half() -> Library:
    return Library("cpu", dtype="float16")


@contextmanager
def holding(module: torch.nn.Module, name: str, value: float) -> Iterator[None]:
    """Meanwhile one number of one weight is `value`."""
    numbers = module.get_parameter(name).detach().view(-1)  # frozen
    before = numbers[0].clone()
    numbers[0] = value
    try:
        yield
    finally:
        numbers[0] = before


def put(file: Path, name: str, value: float, dtype: torch.dtype | None = None) -> None:
    """One number of one tensor of a file becomes `value`; all of it is of `dtype` then."""
    tensors = {n: t.to(dtype or t.dtype) for n, t in load_file(file).items()}
    tensors[name].view(-1)[0] = value
    save_file(tensors, file, metadata={"format": "pt"})


def lora_of(file: Path, *factors: float) -> Path:
    """A LoRA of one layer: the lower factor's two rows, and the upper factor."""
    first, second, up = factors
    name, width = f"lora_unet_{LAYER.replace('.', '_')}", 32
    down = torch.tensor([first, second])[:, None].repeat(1, width)
    parts = {"lora_down.weight": down, "lora_up.weight": torch.full((width, 2), up), "alpha": torch.tensor(2.0)}
    save_file({f"{name}.{part}": tensor for part, tensor in parts.items()}, file)
    return file


@pytest.mark.parametrize("value", [NAN, float("inf"), -float("inf")])
def test_one_number_that_is_none_is_enough(value):
    values = torch.zeros(3, 4)
    require_finite(values, "it", "change it")
    values[1, 2] = value
    assert not is_finite(values)
    with pytest.raises(NotFinite, match="it holds NaN or infinity.*change it"):
        require_finite(values, "it", "change it")


def test_a_u_net_with_one_nan_draws_no_black_picture(embedded, capsys, tmp_path):
    """Symptom: a black picture and exit status 0."""
    folder = shutil.copytree(embedded / STUDENT, tmp_path / "model")
    put(folder / UNET, WEIGHT, NAN)
    out = tmp_path / "black.png"
    words = ["generate", "--model", str(folder), "--prompt", "a red circle", "--steps", "1", "--out", str(out)]
    words += ["--width", "64", "--height", "64"]
    assert main(words) == 2
    message = capsys.readouterr().err
    assert (
        f"{folder / UNET} is damaged: its weight {WEIGHT} holds NaN or infinity; copy or download it again" in message
    )
    assert not out.exists()
    shutil.copy(embedded / STUDENT / UNET, folder / UNET)
    assert main(words) == 0 and out.exists()


def test_a_lora_with_one_nan_is_named_and_the_model_draws_without_it(library, tmp_path):
    model, lora = library.get(STUDENT), lora_of(tmp_path / "broken.safetensors", 1, NAN, 1)
    output = rf"{LAYER}.*lora_(A|B|up|down).weight in {re.escape(str(lora))} holds NaN or infinity; download it again"
    with pytest.raises(UserError, match=output):
        generate(request(lora=str(lora)), model)
    assert generate(request(), model)
    assert generate(request(lora=str(lora_of(lora, 1, 1, 1))), model)  # as if it had been downloaded again


def test_a_lora_that_is_too_strong_for_half_precision_says_how_to_weaken_it(half, library, tmp_path):
    lora = str(lora_of(tmp_path / "strong.safetensors", 130, 130, 130))
    with pytest.raises(NotFinite, match="overflow float16; .*--dtype float32; or lower --lora-strength, now 4"):
        generate(request(lora=lora, lora_strength=4), half.get(STUDENT))
    assert generate(request(lora=lora, lora_strength=1), half.get(STUDENT))
    assert generate(request(lora=lora, lora_strength=4), library.get(STUDENT))


def test_a_weight_beyond_half_precision_asks_for_float32(embedded, tmp_path):
    folder = shutil.copytree(embedded / STUDENT, tmp_path / "model")
    put(folder / UNET, "conv_in.bias", 1e5, torch.float32)
    with pytest.raises(NotFinite, match="conv_in.bias is beyond float16's largest number, 65,504.*--dtype float32"):
        generate(request(folder), Library("cpu", dtype="float16").get(str(folder)))
    assert generate(request(folder), Library("cpu", dtype="float32").get(str(folder)))


def test_weights_that_overflow_are_told_apart_by_precision(half, library, embedded):
    for models, value, output in (
        (half, 6e4, "overflow float16; draw it in float32"),
        (library, 3e38, f"overflow float32, so the file is damaged; copy {re.escape(str(embedded / STUDENT / UNET))}"),
    ):
        unet = models.get(STUDENT).pipeline.unet
        with holding(unet, "conv_out.weight", value), pytest.raises(NotFinite, match=output):
            generate(request(), models.get(STUDENT))


@pytest.mark.parametrize("part", ["text_encoder", "text_encoder_2"])
def test_a_text_encoder_with_a_nan_is_named(library, part):
    model, name = library.get(STUDENT), "encoder.layers.0.mlp.fc1.bias"
    encoder = getattr(model.pipeline, part)
    whole = next(n for n, _ in encoder.named_parameters() if n.endswith(name))
    with holding(encoder, whole, NAN), pytest.raises(NotFinite, match=f"{name} holds NaN.*{part}/model.safetensors"):
        generate(request(), model)
    assert generate(request(), model)


@pytest.fixture
def loud(tmp_path, embedded) -> Path:
    """The folder of a VAE whose largest activations are beyond fp16, as those of SDXL's own are."""
    folder = shutil.copytree(embedded / STUDENT / "vae", tmp_path / "vae")
    tensors = load_file(folder / Path(VAE).name)
    tensors["decoder.conv_in.weight"] *= 5e4
    save_file(tensors, folder / Path(VAE).name, metadata={"format": "pt"})
    return folder


def vae_of(folder: Path, dtype: torch.dtype = torch.float32, **config) -> torch.nn.Module:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | config))
    return read_network("vae", folder, stored_tensors(folder / Path(VAE).name), dtype)


@torch.inference_mode()
def test_a_vae_that_overflows_half_precision_says_what_to_write_into_its_config(loud):
    latents = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.raises(NotFinite, match="overflow float16") as error:
        decode(vae_of(loud, torch.float16, force_upcast=False), latents)
    output = str(error.value)
    assert f'write "force_upcast": true in {loud}/config.json' in output and "--dtype float32" in output
    assert decode(vae_of(loud, torch.float32), latents)
    assert decode(vae_of(loud, torch.float16, force_upcast=True), latents)


def test_a_vae_with_a_nan_is_named_wherever_it_works(library, embedded):
    model = library.get(STUDENT)
    vae, folder = model.pipeline.vae, str(embedded / STUDENT / "vae")
    with holding(vae, "decoder.conv_out.bias", NAN):
        with pytest.raises(NotFinite, match=f"decoder.conv_out.bias holds NaN.*{re.escape(folder)}"):
            generate(request(), model)
        with pytest.raises(NotFinite, match="decoder.conv_out.bias"):
            draw(model, [resolve(request(), model.card)])
    with holding(vae, "encoder.conv_in.bias", NAN), pytest.raises(NotFinite, match="encoder.conv_in.bias"):
        Encoders(model.pipeline, "cpu").pictures(np.zeros((1, 64, 64, 3), np.uint8))  # a cache of them trains nothing


def test_two_models_of_one_vae_decode_each_as_its_own_config_says(library, loud, embedded):
    """Symptom: weights of the same hash were shared whatever the config next to them said."""
    shutil.copy(embedded / STUDENT / VAE, loud / Path(VAE).name)
    vae_of(loud, force_upcast=True, sample_size=99)

    def part(folder):
        files = {"vae": Weights(variant=None, files=(VAE,))}
        where = Location(folder=folder.parent, chosen=files, replaced={}, revision="local")
        return shared_part(library, "vae", where, torch.float32)

    own, other = part(embedded / STUDENT / "vae"), part(loud)
    assert other.config.force_upcast and not own.config.force_upcast
    vae_of(loud, force_upcast=False)
    assert part(loud) is own is part(embedded / TEACHER / "vae")


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_noise_without_any_signal_is_refused_where_the_sampler_would_divide_by_it(library, scheduler, monkeypatch):
    model = library.get(STUDENT)
    monkeypatch.setattr(model, "card", dataclasses.replace(model.card, noising="ddpm"))  # lcm draws with no other

    def drawn(**config):
        silent = EulerDiscreteScheduler.from_config(model.pipeline.scheduler.config, **config)
        monkeypatch.setattr(model.pipeline, "scheduler", silent)
        return generate(request(scheduler=scheduler, steps=2), model)

    dividing = ("ddim-trailing", "lcm", "tcd")
    if scheduler not in dividing:  # which is the remedy
        assert drawn(rescale_betas_zero_snr=True)
        return
    with pytest.raises(UserError, match='rescale_betas_zero_snr.*"prediction_type": "v_prediction"') as error:
        drawn(rescale_betas_zero_snr=True)
    assert f"({', '.join(other for other in SCHEDULERS if other not in dividing)})" in str(error.value)
    assert drawn(rescale_betas_zero_snr=True, prediction_type="v_prediction")


@pytest.mark.parametrize("betas", [{"beta_end": 1.5}, {"trained_betas": [-0.1, *[0.01] * 999]}])
def test_betas_that_are_none_are_refused(library, betas):
    with pytest.raises(UserError, match="scheduler_config.json.*betas"):
        build_for_run("euler-trailing", library.get(STUDENT).pipeline.scheduler.config | betas)


def test_a_preview_that_is_not_finite_is_left_out_and_the_run_goes_on(library, monkeypatch):
    """Half way the latents may be beyond what the VAE can decode; only the picture itself must be whole."""
    model, steps = library.get(STUDENT), []
    plain, own, calls = generate(request(steps=4), model), model.pipeline.vae.decode, []

    def broken_at_first(latents):
        calls.append(latents)
        result = own(latents)
        return result if len(calls) > 1 else type(result)(sample=result.sample * NAN)

    monkeypatch.setattr(model.pipeline.vae, "decode", broken_at_first)
    seen = generate(request(steps=4), model, on_step=steps.append, num_previews=1)
    assert len(calls) == 2 and not any(step.preview for step in steps)
    assert np.array_equal(np.asarray(seen.images[0]), np.asarray(plain.images[0]))


# --- wherever else a tensor becomes a picture or a number: the teacher's U-Net has a NaN, the student is whole


@pytest.fixture(scope="module")
def broken(library) -> Iterator[Library]:
    with holding(library.get(TEACHER).pipeline.unet, WEIGHT, NAN):
        yield library


def test_evaluation_scores_no_black_pictures(broken):
    model = broken.get(TEACHER)
    with pytest.raises(NotFinite, match="tiny-sdxl computed NaN"):
        draw(model, [resolve(request(TEACHER), model.card)])


def test_agreement_and_similarity_measure_no_nan(broken):
    model = broken.get(TEACHER)
    with pytest.raises(NotFinite, match="tiny-sdxl computed NaN"):
        similarities(model, request(TEACHER))
    placement = model.place(resolve(request(TEACHER), model.card))
    asked = conditioning(model, placement, ["a red circle"], 64, 64)
    with pytest.raises(NotFinite, match=f"tiny-sdxl computed NaN.*{WEIGHT}"):
        predict(model, placement, [], torch.zeros(1, 4, 8, 8), 500, asked)


@pytest.mark.parametrize("shared", [False, True])
def test_attention_records_no_nan_also_of_a_teacher_that_only_looks_on(broken, shared):
    together = prepare([request(TEACHER), request()], broken, stages=["UP-1"], shared=shared)
    with pytest.raises(NotFinite, match=f"tiny-sdxl computed NaN.*{WEIGHT}"):
        together.run(lambda *_: None)


def test_a_record_keeps_no_queries_that_became_infinite_in_its_own_precision(library):
    """The picture is whole: only what is kept of it is in half precision."""
    unet = library.get(STUDENT).pipeline.unet
    with holding(unet, WEIGHT, 1e6):
        together = prepare([request()], library, stages=["DW-2"], every=True)
        with pytest.raises(NotFinite, match="DW-2, transformer 1, block 1 are too large for float16.*than DW-2"):
            together.run(lambda *_: None)
        assert prepare([request()], library, stages=["UP-1"]).run(lambda *_: None)
