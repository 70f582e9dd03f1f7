"""A folder that is not whole is refused by the name of what it lacks; what is not here says how to get it."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from diffusers import UNet2DConditionModel

from koala.errors import UserError
from koala.models.cards import CARDS, EMBEDDED
from koala.models.library import Library
from koala.models.locate import NotOnThisMachine, availability, locate, tiny_vae
from koala.models.registry import find

WEIGHTS = "diffusion_pytorch_model"


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(EMBEDDED / "tiny-koala-700m", tmp_path / "mine")


def refusal(folder) -> str:
    with pytest.raises(UserError) as caught:
        locate(find(str(folder)))
    return str(caught.value)


@pytest.mark.parametrize(
    "file",
    [
        f"unet/{WEIGHTS}.safetensors",
        "model_index.json",
        "vae/config.json",
    ],
)
def test_a_missing_file_is_named(copy, file):
    os.remove(copy / file)
    message = refusal(copy)
    assert f"{file} is missing" in message
    assert "save_pretrained" in message


@pytest.mark.parametrize("length", [0, 5, 1000, 4_000_000])
def test_cut_weights_are_refused_before_anything_is_loaded(copy, length):
    os.truncate(copy / "unet" / f"{WEIGHTS}.safetensors", length)
    message = refusal(copy)
    assert f"unet/{WEIGHTS}.safetensors is not a whole safetensors file" in message
    assert "copy or save the file again" in message


def test_damaged_configs_say_which_file(copy):
    (copy / "model_index.json").write_text("[]")
    assert "model_index.json is damaged: it holds a list" in refusal(copy)
    (copy / "unet" / "config.json").write_text("{")
    assert "unet/config.json is damaged" in refusal(copy)
    (copy / "unet" / "config.json").write_text("[]")
    assert "unet/config.json is damaged: it holds a list" in refusal(copy)


@pytest.mark.parametrize("ending", [".bin", ".ckpt", ".fp16.bin"])
def test_a_pickle_is_refused_and_never_opened(copy, ending):
    ran = copy / "ran"
    (copy / "unet" / f"{WEIGHTS}.safetensors").unlink()
    # a pickle that would leave a file behind if anything read it
    (copy / "unet" / f"{WEIGHTS}{ending}").write_bytes(b"cos\nsystem\n(S'touch " + str(ran).encode() + b"'\ntR.")
    message = refusal(copy)
    assert f"as a pickle only (unet/{WEIGHTS}{ending})" in message
    assert "safe_serialization=True" in message
    assert not ran.exists()


def test_a_folder_of_something_else_is_refused(copy, tmp_path):
    (tmp_path / "holiday.jpg").write_bytes(b"x")
    assert "is not a diffusers pipeline" in refusal(tmp_path)
    (copy / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    assert "is a StableDiffusionPipeline; SDXL pipelines run here" in refusal(copy)
    config = json.loads((copy / "unet" / "config.json").read_text())
    (copy / "unet" / "config.json").write_text(json.dumps(config | {"addition_embed_type": None}))
    assert "is not a U-Net of SDXL's family" in refusal(copy)


def test_a_whole_copy_works_and_shares_what_is_the_same(copy):
    library = Library("cpu")
    copied, shipped = library.get(str(copy)), library.get("tiny-koala-700m")
    assert copied.pipeline.vae is shipped.pipeline.vae
    assert copied.parameters == shipped.parameters


def same_unet(one, other) -> bool:
    mine, theirs = one.pipeline.unet.state_dict(), other.pipeline.unet.state_dict()
    return mine.keys() == theirs.keys() and all((mine[k] == theirs[k]).all() for k in mine)


def test_half_precision_files_of_the_hub_load_and_are_preferred_where_both_are_there(copy):
    for part in ("unet", "text_encoder"):
        (file,) = (copy / part).glob("*.safetensors")
        file.rename(file.with_suffix(".fp16.safetensors"))
    whole = copy / "vae" / f"{WEIGHTS}.safetensors"
    shutil.copy(whole, whole.with_suffix(".fp16.safetensors"))
    location = locate(find(str(copy)))
    assert location.variant == "fp16"
    names = [location.files(part)[0].name for part in ("unet", "vae", "text_encoder", "text_encoder_2")]
    assert names == [f"{WEIGHTS}.fp16.safetensors"] * 2 + ["model.fp16.safetensors", "model.safetensors"]
    library = Library("cpu")
    assert same_unet(library.get(str(copy)), library.get("tiny-koala-700m"))


@pytest.mark.parametrize("variant", [None, "fp16"])
def test_a_unet_in_several_files_loads(copy, variant):
    unet = UNet2DConditionModel.from_pretrained(copy / "unet")
    (copy / "unet" / f"{WEIGHTS}.safetensors").unlink()
    unet.save_pretrained(copy / "unet", max_shard_size="3MB", variant=variant)
    location = locate(find(str(copy)))
    assert len(location.files("unet")) > 1
    assert location.variant == variant
    library = Library("cpu")
    assert same_unet(library.get(str(copy)), library.get("tiny-koala-700m"))
    os.truncate(location.files("unet")[1], 1000)
    assert f"{location.files('unet')[1].name} is not a whole" in refusal(copy)
    location.files("unet")[1].unlink()
    assert f"unet/{location.files('unet')[1].name} is missing" in refusal(copy)


def test_a_model_that_is_not_here_says_what_to_type():
    card = CARDS["koala-lightning-700m"]
    with pytest.raises(NotOnThisMachine, match=r"fetch it once \(3.5 GB\): python -m koala fetch koala-lightning-700m"):
        locate(card)
    available, needs = availability(card)
    assert not available
    assert "python -m koala fetch" in needs
    assert tiny_vae(card) is None
    assert availability(find("tiny-sdxl")) == (True, "on this machine")


def test_locating_opens_no_connection():
    """Not even where the network is there: a listing of the models must not wait for one."""
    code = (
        "import socket\n"
        "def connect(*_):\n    raise SystemExit('connected')\n"
        "socket.socket.connect = socket.getaddrinfo = connect\n"
        "from koala.cli.main import main\n"
        "raise SystemExit(main(['models', 'koala-700m', 'nobody/nothing', 'sdxl-lightning-4step', 'tiny-sdxl']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | {"HF_HUB_OFFLINE": "0"}
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("  3.5 GB  ") == 1
    assert done.stdout.count("  yes  ") == 1


def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(UserError, match="unknown device 'gpu'"):
        Library("gpu")


def test_a_folder_saved_by_todays_transformers_is_whole(tmp_path, embedded):
    """transformers 5 writes tokenizer.json alone; older ones wrote vocab.json and merges.txt."""
    folder = tmp_path / "saved"
    shutil.copytree(embedded / "tiny-koala-700m", folder)
    for tokenizer in ("tokenizer", "tokenizer_2"):
        (folder / tokenizer / "vocab.json").unlink()
        (folder / tokenizer / "merges.txt").unlink()
    assert locate(find(str(folder))).folder == folder
    (folder / "tokenizer" / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer/tokenizer.json is missing"):
        locate(find(str(folder)))
