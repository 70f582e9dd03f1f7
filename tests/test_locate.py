"""A folder that is not whole is refused by the name of what it lacks; what is not here says how to get it."""

import os
import shutil

import pytest

from koala.loading import Library
from koala.locate import NotOnThisMachine, availability, locate
from koala.registry import CARDS, EMBEDDED, find
from koala.request import RequestError


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(EMBEDDED / "tiny-koala-700m", tmp_path / "mine")


@pytest.mark.parametrize(
    "file",
    [
        "unet/diffusion_pytorch_model.safetensors",
        "model_index.json",
        "vae/config.json",
        "tokenizer/merges.txt",
    ],
)
def test_a_missing_file_is_named(copy, file):
    os.remove(copy / file)
    with pytest.raises(RequestError) as caught:
        Library("cpu").get(str(copy))
    assert f"{file} is missing" in str(caught.value)
    assert "save_pretrained" in str(caught.value)


def test_damaged_weights_and_configs_say_which_file(copy):
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(RequestError, match="could not be loaded"):
        Library("cpu").get(str(copy))
    (copy / "unet" / "config.json").write_text("{")
    with pytest.raises(RequestError, match="config.json"):
        Library("cpu").get(str(copy))


def test_a_whole_copy_works_and_shares_what_is_the_same(copy):
    library = Library("cpu")
    mine, shipped = library.get(str(copy)), library.get("tiny-koala-700m")
    assert mine.pipeline.vae is shipped.pipeline.vae
    assert mine.parameters == shipped.parameters


def test_a_model_that_is_not_here_says_what_to_type():
    card = CARDS["koala-lightning-700m"]
    with pytest.raises(NotOnThisMachine, match="hf download etri-vilab/koala-lightning-700m"):
        locate(card)
    available, needs = availability(card)
    assert not available
    assert "hf download" in needs
    assert availability(find("tiny-sdxl")) == (True, "on this machine")


def test_a_device_that_is_not_here_is_refused():
    with pytest.raises(RequestError, match="unknown device 'gpu'"):
        Library("gpu")
