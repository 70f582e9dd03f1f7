"""An address as it is pasted from a browser is the model that its page is about, or is refused with what to type."""

import pytest

from koala.errors import UserError
from koala.models.cards import CARDS
from koala.models.checkpoints import open_unet
from koala.models.hub_address import hub_id
from koala.models.registry import find

HUB = "https://huggingface.co"


@pytest.mark.parametrize(
    ("pasted", "model"),
    [
        (f"{HUB}/someone/model", "someone/model"),
        (f"{HUB}/someone/model/", "someone/model"),
        (f"  {HUB}/someone/model\n", "someone/model"),
        (f"{HUB}/someone/model/tree/main", "someone/model"),
        (f"{HUB}/someone/model/tree/main/", "someone/model"),
        (f"{HUB}/someone/model/tree/main/unet", "someone/model"),
        (f"{HUB}/someone/model/tree/v1.0", "someone/model@v1.0"),
        (f"{HUB}/someone/model/tree/refs%2Fpr%2F3", "someone/model@refs/pr/3"),
        (f"{HUB}/someone/model/tree/refs/pr/3/unet", "someone/model@refs/pr/3"),
        (f"{HUB}/someone/model/blob/main/README.md", "someone/model"),
        (f"{HUB}/someone/model/discussions/3", "someone/model"),
        (f"{HUB}/someone/model?library=diffusers#usage", "someone/model"),
        ("http://huggingface.co/someone/model", "someone/model"),
        ("HTTPS://HuggingFace.co/someone/model", "someone/model"),
        ("https://www.huggingface.co/someone/model", "someone/model"),
        ("huggingface.co/someone/model", "someone/model"),
        ("hf.co/someone/model", "someone/model"),
        ("hf://someone/model", "someone/model"),
        ("hf://models/someone/model", "someone/model"),
        ("hf://someone/model@v1", "someone/model@v1"),
        ("someone/model/", "someone/model"),
    ],
)
def test_a_pasted_address_is_its_model(pasted, model):
    assert find(pasted) == find(model)


def test_an_address_of_a_known_model_is_that_model():
    assert find(f"{HUB}/etri-vilab/koala-700m/tree/main") is CARDS["koala-700m"]
    with pytest.raises(UserError, match="koala-700m is not on this machine.*python -m koala fetch koala-700m"):
        open_unet(f"{HUB}/etri-vilab/koala-700m/")


@pytest.mark.parametrize(
    ("pasted", "says"),
    [
        ("https://civitai.com/models/101055", "is not an address of huggingface.co; download the file there yourself"),
        (f"{HUB}/someone", "is not the address of a model; a model's is https://huggingface.co/owner/name"),
        (f"{HUB}/datasets/someone/data", "is not the address of a model"),
        (f"{HUB}/spaces/someone/app", "is not the address of a model"),
        (f"{HUB}/a/b/blob/main/x.safetensors", "is one file; a model is a whole repository.*: a/b"),
        (f"{HUB}/a/b/resolve/main/unet/x.safetensors?download=true", "is one file"),
        (f"{HUB}/a/b/tree/main/sdxl", "is a folder inside a/b; only the files at the top"),
    ],
)
def test_another_address_is_refused_with_what_to_do(pasted, says):
    for use in (find, open_unet):
        with pytest.raises(UserError, match=says):
            use(pasted)


def test_a_mirror_that_is_set_is_the_hub_too(monkeypatch):
    monkeypatch.setenv("HF_ENDPOINT", "https://hf-mirror.example")
    assert hub_id("https://hf-mirror.example/someone/model") == "someone/model"


@pytest.mark.parametrize("name", ["someone/model", "tiny-sdxl", "./folder", "C:\\models\\x", ""])
def test_what_is_no_address_is_left_alone(name):
    assert hub_id(name) is None


def test_a_file_that_is_not_there_is_said_whatever_the_case_of_its_ending():
    with pytest.raises(UserError, match="there is no file mine.SAFETENSORS"):
        find("mine.SAFETENSORS")
