"""A U-Net opens from whatever holds it, always as the same one; what is not a U-Net of SDXL's family is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file, save_file

from koala.errors import UserError
from koala.models.checkpoints import open_unet
from koala.unet.layer_map import renamed
from koala.unet.original_layout import PREFIX, original_names
from koala.unet.specs import SPECS, TINY_KOALA_1B, TINY_SDXL, replace, student

WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture(scope="module")
def unets(tmp_path_factory, embedded):
    """Every way in which the embedded teacher's U-Net can be given: label -> (what to type, has it a pipeline)."""
    root = tmp_path_factory.mktemp("unets")
    own = embedded / "tiny-sdxl"
    weights = load_file(own / "unet" / WEIGHTS)
    names = original_names(TINY_SDXL)
    original = {renamed(key, names): tensor for key, tensor in weights.items()}
    clutter = {"model_ema.decay": torch.zeros(3), "conditioner.embedders.0.x": torch.zeros(2)}
    save_file({PREFIX + k: v for k, v in original.items()} | clutter, root / "whole.safetensors")
    save_file(original, root / "unet-only.safetensors")
    unet = UNet2DConditionModel.from_pretrained(own / "unet", torch_dtype=torch.float16)
    unet.save_pretrained(root / "sharded", max_shard_size="4MB")
    unet.save_pretrained(root / "variant", variant="fp16")
    shutil.copytree(own, root / "pipeline")
    (root / "pipeline" / "unet" / WEIGHTS).unlink()
    unet.save_pretrained(root / "pipeline" / "unet", variant="fp16", max_shard_size="4MB")
    assert len(list((root / "sharded").glob("*.safetensors"))) > 1
    return {
        "name": ("tiny-sdxl", True),
        "pipeline folder": (str(own), True),
        "pipeline folder, sharded fp16 variant": (str(root / "pipeline"), True),
        "U-Net folder": (str(own / "unet"), False),
        "U-Net folder, shards": (str(root / "sharded"), False),
        "U-Net folder, fp16 variant": (str(root / "variant"), False),
        "file, diffusers' keys": (str(own / "unet" / WEIGHTS), False),
        "file, original layout": (str(root / "whole.safetensors"), False),
        "file, original layout without prefix": (str(root / "unet-only.safetensors"), False),
    }


def read(tensor):
    with open(tensor.file, "rb") as file:
        file.seek(tensor.start)
        return tensor.dtype, tensor.shape, file.read(tensor.size)


def test_every_way_to_give_a_unet_opens_the_same_one(unets):
    expected = {k: read(t) for k, t in open_unet("tiny-sdxl").tensors.items()}
    assert len(expected) == 1680
    for label, (given, has_pipeline) in unets.items():
        result = open_unet(given)
        assert result.spec == TINY_SDXL, label
        assert {k: read(t) for k, t in result.tensors.items()} == expected, label
        assert (result.pipeline is not None) == has_pipeline, label
        assert result.config["sample_size"] == 32, label


@pytest.mark.parametrize("spec", [*SPECS.values(), student("0+0,1+1,3+4/0/1+2+9,2+1+1,0+0+0", TINY_SDXL)], ids=str)
def test_the_spec_of_a_bare_file_is_read_from_names_and_shapes(tmp_path, spec):
    tiny = replace(TINY_SDXL, down_depths=spec.down_depths, mid_depth=spec.mid_depth, up_depths=spec.up_depths)
    keys = UNet2DConditionModel(**tiny.config()).state_dict()
    names = original_names(tiny)
    save_file(keys, tmp_path / "own.safetensors")
    save_file({renamed(k, names): v for k, v in keys.items()}, tmp_path / "original.safetensors")
    for file in ("own.safetensors", "original.safetensors"):
        result = open_unet(str(tmp_path / file))
        assert result.spec.notation == spec.notation
        assert result.tensors.keys() == keys.keys()


def other_config(tmp_path, **changes):
    config = UNet2DConditionModel(**TINY_KOALA_1B.config()).config
    (tmp_path / "config.json").write_text(json.dumps({**config, **changes}))
    return str(tmp_path)


def stable_diffusion_1(tmp_path):
    return other_config(tmp_path, addition_embed_type=None)


def inpainting(tmp_path):
    return other_config(tmp_path, in_channels=9)


def a_vae(tmp_path):
    return "koala/embedded/tiny-sdxl/vae"


def a_text_encoder_file(tmp_path):
    return "koala/embedded/tiny-sdxl/text_encoder/model.safetensors"


def pictures(tmp_path):
    (tmp_path / "cat.png").write_bytes(b"")
    return str(tmp_path)


def no_weights(tmp_path):
    return other_config(tmp_path)


def pickled_weights(tmp_path):
    (tmp_path / "diffusion_pytorch_model.bin").write_bytes(b"")
    return other_config(tmp_path)


def broken_config(tmp_path):
    (tmp_path / "config.json").write_text('{"sample')
    return str(tmp_path)


def truncated(tmp_path):
    whole = Path("koala/embedded/tiny-sdxl/unet", WEIGHTS).read_bytes()
    (tmp_path / WEIGHTS).write_bytes(whole[: len(whole) // 2])
    return other_config(tmp_path)


def missing_shard(tmp_path):
    unet = UNet2DConditionModel(**TINY_KOALA_1B.config())
    unet.save_pretrained(tmp_path, max_shard_size="4MB")
    sorted(tmp_path.glob("*.safetensors"))[1].unlink()
    return str(tmp_path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (stable_diffusion_1, "not a U-Net of SDXL's family: its addition_embed_type is None"),
        (inpainting, "not a U-Net of SDXL's family: its in_channels is 9"),
        (a_vae, "not a U-Net of SDXL's family"),
        (a_text_encoder_file, "no U-Net of SDXL's family: its conv_in and add_embedding are None and None"),
        (pictures, "neither model_index.json nor unet/"),
        (no_weights, "has no weights: diffusion_pytorch_model.safetensors is missing"),
        (pickled_weights, "is a pickle, which can run any code"),
        (broken_config, r"config\.json is damaged"),
        (truncated, "is not a whole safetensors file"),
        (missing_shard, "lacks diffusion_pytorch_model-00002-of-00003.safetensors, which its .+index.json lists"),
        (lambda _: "sdxl.ckpt", "is a pickle"),
        (lambda _: "nowhere.safetensors", "there is no file nowhere.safetensors"),
        (lambda _: "tiny-sdlx", "did you mean tiny-sdxl"),
        (lambda _: "koala-1b", "not on this machine"),
    ],
    ids=lambda v: getattr(v, "__name__", None),
)
def test_what_is_no_teacher_is_refused(tmp_path, monkeypatch, embedded, make, says):
    monkeypatch.chdir(embedded.parents[1])
    with pytest.raises(UserError, match=says):
        open_unet(make(tmp_path))
