"""SDXL's shape does not imply SDXL's semantics: what a model's configs say is followed, or refused by name."""

import inspect
import json
import shutil

import diffusers
import pytest
import torch
from safetensors.torch import load_file, save_file

from koala.compress.surgery import compress
from koala.convert.to_single_file import write_single_file
from koala.errors import UserError
from koala.models.checkpoints import open_unet
from koala.models.from_torch import load_unet
from koala.models.locate import locate
from koala.models.registry import find
from koala.models.semantics import SAME_NOISE
from koala.request import SCHEDULERS

SCHEDULER, INDEX = "scheduler/scheduler_config.json", "model_index.json"
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copy(tmp_path, embedded):
    return shutil.copytree(embedded / "tiny-koala-700m", tmp_path / "mine")


def say(folder, file, **values):
    path = folder / file
    path.write_text(json.dumps(json.loads(path.read_text()) | values))
    return folder


def add(folder, **tensors):
    save_file(load_file(folder / UNET) | tensors, folder / UNET, metadata={"format": "pt"})
    return folder


REFUSED = [
    (SCHEDULER, {"_class_name": "EDMEulerScheduler"}, "is for EDMEulerScheduler: it follows the noise of EDM"),
    (SCHEDULER, {"_class_name": "EDMDPMSolverMultistepScheduler"}, "follows the noise of EDM"),
    (SCHEDULER, {"_class_name": "FlowMatchHeunDiscreteScheduler"}, "follows the noise of flow matching"),
    (SCHEDULER, {"prediction_type": "flow_prediction"}, "says prediction_type 'flow_prediction': .*flow matching"),
    (SCHEDULER, {"_class_name": "UniPCMultistepScheduler", "use_flow_sigmas": True}, "flow matching"),
    (SCHEDULER, {"_class_name": "VQDiffusionScheduler"}, "another noise schedule than SDXL's"),
    (SCHEDULER, {"prediction_type": "anything"}, "one of epsilon, v_prediction and sample"),
    (INDEX, {"requires_aesthetics_score": True}, "this is the refiner.*take the base model"),
    (INDEX, {"_class_name": ["pipeline", "My"]}, '"_class_name": "StableDiffusionXLPipeline" there'),
    (INDEX, {"_class_name": "KolorsPipeline"}, "is a KolorsPipeline; .*name a folder"),
    ("unet/config.json", {"time_cond_proj_dim": 256}, "takes the guidance as an input, as latent consistency models"),
    ("unet/config.json", {"in_channels": 9}, "its in_channels is 9, .*for inpainting.*take a text-to-image model"),
    ("unet/config.json", {"block_out_channels": [384, 768, 1536, 1536]}, "U-Net of SDXL's refiner"),
    ("vae/config.json", {"_class_name": "AsymmetricAutoencoderKL"}, "is for AsymmetricAutoencoderKL"),
    *(
        (f"{part}/config.json", {"quantization_config": {"quant_method": "gptq"}}, "weights are quantised")
        for part in ("unet", "vae", "text_encoder", "text_encoder_2")
    ),
]


@pytest.mark.parametrize(("file", "values", "says"), REFUSED)
def test_what_is_not_followed_is_refused_by_name_by_loading_compress_and_export(copy, tmp_path, file, values, says):
    say(copy, file, **values)
    for use in (
        lambda: locate(find(str(copy))),
        lambda: compress(str(copy), "0,1,1/-/1+1,1+1,0+0", tmp_path / "student"),
        lambda: write_single_file(str(copy), tmp_path / "one.safetensors"),
    ):
        with pytest.raises(UserError, match=says) as output:
            use()
        assert "\n" not in str(output.value) and str(copy) in str(output.value)
    assert not (tmp_path / "student").exists() and not (tmp_path / "one.safetensors").exists()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_every_scheduler_of_the_allow_list_computes_with_sdxls_betas_and_no_other_does():
    """Held against diffusers: the noise levels that each of its classes makes of SDXL's config."""
    betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}
    expected = torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)
    for name in set(SAME_NOISE) - {"DPMSolverSDEScheduler"}:  # it wants torchsde; its betas are KDPM2's
        kind = getattr(diffusers, name)
        assert betas.keys() <= inspect.signature(kind.__init__).parameters.keys(), name
        torch.testing.assert_close(kind(**betas).alphas_cumprod.float(), expected, msg=name)
    for name in ("EDMEulerScheduler", "FlowMatchEulerDiscreteScheduler", "CMStochasticIterativeScheduler"):
        assert name not in SAME_NOISE and hasattr(diffusers, name)


def test_what_the_remedies_say_works(copy):
    say(copy, INDEX, _class_name=["pipeline", "My"])
    say(copy, INDEX, _class_name="StableDiffusionXLPipeline")
    add(copy, v_pred=torch.zeros(1), ztsnr=torch.zeros(1))
    with pytest.raises(UserError, match='write "prediction_type": "v_prediction" there'):
        load_unet(locate(find(str(copy))), torch.float32)
    with pytest.raises(UserError, match="is marked v_pred"):
        open_unet(str(copy))
    say(copy, SCHEDULER, prediction_type="v_prediction")
    with pytest.raises(UserError, match='is marked ztsnr, .* write "rescale_betas_zero_snr": true there'):
        load_unet(locate(find(str(copy))), torch.float32)
    say(copy, SCHEDULER, rescale_betas_zero_snr=True)
    assert load_unet(locate(find(str(copy))), torch.float32) and open_unet(str(copy))


def test_marks_of_a_velocity_model_go_into_its_student(tmp_path, copy):
    """Symptom: the student of a v-prediction file was taken for one that predicts noise."""
    add(copy, v_pred=torch.ones(1), ztsnr=torch.ones(2))
    file = shutil.copy(copy / UNET, tmp_path / "teacher.SAFETENSORS")  # an ending in capitals, as from some cameras
    report = compress(str(file), "0,1,1/-/1+1,1+1,0+0", tmp_path / "student")
    student = load_file(tmp_path / "student" / "diffusion_pytorch_model.safetensors")
    assert torch.equal(student["v_pred"], torch.ones(1)) and torch.equal(student["ztsnr"], torch.ones(2))
    assert report.markers == ("v_pred", "ztsnr") and "is marked v_pred, ztsnr" in report.lines()[-1]
    assert open_unet(str(tmp_path / "student")).markers.keys() == {"v_pred", "ztsnr"}
    assert diffusers.UNet2DConditionModel.from_pretrained(tmp_path / "student")


def test_scaled_fp8_is_refused_wherever_a_unet_is_read(tmp_path, copy):
    """Symptom: a student 1,465 times too large."""
    weights = load_file(copy / UNET)
    scaled = {k: (v.float() / 0.01).to(torch.float8_e4m3fn) if v.dim() == 2 else v for k, v in weights.items()}
    scales = {k.replace(".weight", ".scale_weight"): torch.tensor(0.01) for k, v in weights.items() if v.dim() == 2}
    save_file(scaled | scales, copy / UNET)
    alone = {f"model.diffusion_model.{k}": v for k, v in (scaled | scales).items()}
    save_file(alone, tmp_path / "one.safetensors")
    for use in (
        lambda: load_unet(locate(find(str(copy))), torch.float32),
        lambda: compress(str(copy), "0,1,1/-/1+1,1+1,0+0", tmp_path / "student"),
        lambda: compress(str(copy / "unet"), "0,1,1/-/1+1,1+1,0+0", tmp_path / "student"),
        lambda: compress(str(copy / UNET), "0,1,1/-/1+1,1+1,0+0", tmp_path / "student"),
    ):
        with pytest.raises(UserError, match=r"is quantised: it has \d+ tensors, .*take a float16 or float32 file"):
            use()


@pytest.mark.parametrize("kind", [k for k in SAME_NOISE if k != "DPMSolverSDEScheduler"])
def test_a_folder_with_any_scheduler_of_the_list_is_located(copy, kind):
    assert locate(find(str(say(copy, SCHEDULER, _class_name=kind))))
    assert find(str(copy)).scheduler in SCHEDULERS
