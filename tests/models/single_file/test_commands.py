"""Every command that takes a model takes a single file, and finds in it what it finds in the folder."""

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from koala.cli.main import main
from koala.convert.to_single_file import write_single_file

TEACHER, STUDENT = "tiny-sdxl", "tiny-koala-700m"
EVALUATED = ["--num-prompts", "1", "--width", "128", "--height", "128"]
MEASURED = {
    "eval": (["eval", "--suite", "agreement", *EVALUATED], "scores"),
    "similarity": (["similarity", "--steps", "1", "--prompts", "a red circle"], "stages"),
}


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> dict[str, Path]:
    """Name of an embedded model -> its single file."""
    folder = tmp_path_factory.mktemp("files")
    for name in (TEACHER, STUDENT):
        write_single_file(name, folder / f"{name}.safetensors")
    return {name: folder / f"{name}.safetensors" for name in (TEACHER, STUDENT)}


def report(words: list[str], out: Path) -> dict:
    assert main([*words, "--out", str(out)]) == 0
    return json.loads(out.read_text())


@pytest.mark.parametrize("verb", [pytest.param("eval", marks=pytest.mark.slow), "similarity"])
def test_a_measurement_of_a_file_is_that_of_its_folder(verb, files, tmp_path):
    words, what = MEASURED[verb]
    result = [
        report([*words, "--model", str(model)], tmp_path / f"{k}.json")[what]
        for k, model in enumerate((files[STUDENT], STUDENT))
    ]
    assert result[0] and result[0] == result[1]


def test_a_file_is_benchmarked_under_its_name(files, tmp_path):
    models = [str(files[TEACHER]), str(files[STUDENT])]
    words = ["bench", "--models", *models, "--sizes", "64", "--steps", "1", "--repeats", "1"]
    rows = report(words, tmp_path / "bench.json")["rows"]
    assert [row["model"] for row in rows] == models
    assert [row["parameters"] for row in rows] == [6_442_948, 1_967_636]  # as the README's table has them


@pytest.mark.slow
def test_a_student_of_a_file_is_that_of_its_folder(files, tmp_path):
    settings = ["num_steps=1", "num_pictures=4", "resolution=128", "batch_size=1", "validation_pictures=1"]
    settings += ["precision=fp32", "teacher_precision=fp32", f"cache={tmp_path / 'cache'}"]
    weights = []
    for name, teacher in (("file", files[TEACHER]), ("folder", TEACHER)):
        run = tmp_path / name
        assert main(["distill", "--out", str(run), f"teacher={teacher}", *settings]) == 0
        weights.append(load_file(run / "student" / "unet" / "diffusion_pytorch_model.safetensors"))
    assert all((weights[0][key] == weights[1][key]).all() for key in weights[1])
