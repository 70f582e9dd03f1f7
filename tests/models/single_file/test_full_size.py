"""At full size a single file draws its folder's picture, with random weights: no mistake in a name would survive it."""

import json
import shutil
from pathlib import Path

import pytest

from koala.convert.to_single_file import write_single_file
from koala.models.library import Library
from koala.models.random_weights import random_library
from koala.request import GenerationRequest
from koala.sampling.generate import generate

pytestmark = pytest.mark.slow

VELOCITY = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}


def folder_of(model: str, folder: Path, scheduler: dict) -> None:
    """A folder of random weights in the sizes of a published model, in fp16."""
    random_library("cpu", dtype="float16").get(model).pipeline.save_pretrained(folder, max_shard_size="100GB")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | scheduler))


def picture(model: Path) -> bytes:
    """One step at 256 px with the model's own guidance and sampler.

    In one precision for both: by default the second would get another where memory is short.
    """
    asked = GenerationRequest(model=str(model), prompt="a red circle", steps=1, width=256, height=256)
    return generate(asked, Library("cpu", dtype="bfloat16").get(str(model))).images[0].tobytes()


@pytest.mark.parametrize(
    ("model", "scheduler"),
    [("koala-700m", {}), ("koala-700m", VELOCITY), ("koala-1b", {}), ("sdxl-base", {})],
    ids=["koala-700m", "v-prediction", "koala-1b", "sdxl"],
)
def test_a_full_size_file_draws_its_folders_picture(tmp_path, model, scheduler):
    """The folder next to the file gives its tokenizers: no model of the hub is on this machine."""
    folder, file = tmp_path / "folder", tmp_path / "file.safetensors"
    folder_of(model, folder, scheduler)
    write_single_file(str(folder), file)
    expected = picture(folder)
    assert picture(file) == expected
    shutil.rmtree(tmp_path)
