"""A file of SDXL's own size, as names and shapes: what it is taken for, and what it lacks."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import UNet2DConditionModel

from koala.errors import UserError
from koala.models.checkpoints import open_unet
from koala.models.locate import NoSettings, locate
from koala.models.registry import find
from koala.models.single_file.header import Header, settings_folder
from koala.models.single_file.reading import read_single_file
from koala.unet.layer_map import renamed
from koala.unet.original_layout import original_names
from koala.unet.specs import SDXL
from recipes.clients.files import shapes_of, write_zeros
from tests.models.single_file.test_models import UNET


@pytest.fixture(scope="module")
def full_size(tmp_path_factory) -> Path:
    """SDXL's U-Net as names and shapes of the original layout; its weights take no room on the disk."""
    with torch.device("meta"):
        state = UNet2DConditionModel(**SDXL.config()).state_dict()
    table = original_names(SDXL)
    header, end = {}, 0
    for key, tensor in state.items():
        size = 2 * tensor.numel()
        header[f"{UNET}{renamed(key, table)}"] = {
            "dtype": "F16",
            "shape": tensor.shape,
            "data_offsets": (end, end + size),
        }
        end += size
    encoded = json.dumps(header).encode()
    file = tmp_path_factory.mktemp("full") / "fine-tune.safetensors"
    with open(file, "wb") as out:
        out.write(len(encoded).to_bytes(8, "little") + encoded)
        out.truncate(8 + len(encoded) + end)
    return file


def test_a_file_of_sdxls_size_without_any_sdxl_folder_says_where_to_get_one(full_size, monkeypatch, tmp_path, caplog):
    file = tmp_path / "fine-tune.safetensors"
    file.hardlink_to(full_size)  # a file is warned of once
    monkeypatch.setattr("koala.models.locate.try_to_load_from_cache", lambda *args, **kwargs: None)
    card = find(str(file))
    assert (card.spec.name, card.steps, card.guidance, card.scheduler) == ("sdxl", 25, 7.5, "euler-leading")
    assert "does not say how it is drawn; it is drawn as SDXL Base 1.0 is, in 25 steps with guidance 7.5" in caplog.text
    with pytest.raises(NoSettings, match="python -m koala fetch sdxl-base; or put the folder of one"):
        locate(card)
    assert open_unet(str(file)).pipeline is None  # surgery needs no more than the U-Net


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("sdxl_lightning_4step.safetensors", ("euler-trailing", 4, 0.0, 1024)),
        ("sdxl_lightning_8step_unet.safetensors", ("euler-trailing", 8, 0.0, 1024)),
        ("sdxl-turbo_fp16.safetensors", ("euler-trailing", 4, 0.0, 512)),
        ("some-turbo.safetensors", ("euler-leading", 25, 7.5, 1024)),  # anybody's
    ],
)
def test_a_few_step_file_is_known_by_its_publishers_name_and_that_is_told(full_size, tmp_path, caplog, name, expected):
    (file := tmp_path / name).hardlink_to(full_size)
    card = find(str(file))
    assert (card.scheduler, card.steps, card.guidance, card.width) == expected
    assert f"in {expected[1]} steps with guidance {expected[2]:g}. A few-step model needs --steps" in caplog.text


@pytest.mark.parametrize("own", [True, False])
def test_a_file_with_sdxls_own_vae_decodes_it_in_single_precision(own, full_size, tmp_path):
    """The base may have a VAE that half precision can hold, which says nothing of the file's own: black pictures."""
    file = full_size
    if own:
        write_zeros(file := tmp_path / "whole.safetensors", shapes_of(SDXL))
    base = locate(find("tiny-sdxl"))
    (vae := tmp_path / "config.json").write_text(
        json.dumps(json.loads(base.configs["vae/config.json"].read_text()) | {"force_upcast": False})
    )
    small = {f"{name}/tokenizer.json": base.folder / name / "tokenizer.json" for name in ("tokenizer", "tokenizer_2")}
    folder = settings_folder(read_single_file(file), Header(), base.configs | small | {"vae/config.json": vae})
    assert json.loads((folder / "vae" / "config.json").read_text())["force_upcast"] is own


def test_a_teacher_of_another_family_is_refused(full_size):
    with pytest.raises(UserError, match="is not a folder of .*'s family"):
        locate(find(str(full_size)), "tiny-sdxl")
