"""`koala distill --resume` of a damaged run: it goes on and says what it repaired, or its refusal's remedy works."""

import json
import random
import shutil
from pathlib import Path

import pytest

from koala.distill.run import intact
from koala.distill.run.folder import RunFolder
from recipes.measure import damage

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory) -> RunFolder:
    """The run of `trained` two steps on, undamaged."""
    run = RunFolder(path=shutil.copytree(trained.path, tmp_path_factory.mktemp("whole") / "run"))
    code, message = damage.distill("--resume", str(run.path), "num_steps=2")
    assert code == 0, message
    return run


def test_a_run_goes_on_when_all_but_its_weights_is_damaged(copy, whole):
    (copy.path / "config.json").write_text("")
    (copy.path / "status.json").write_text('{"state": "dome"')
    with copy.metrics_file.open("ab") as file:
        file.write(b"[1,2]\n\xff\n")
    (copy.student / "unet" / "config.json").write_text("")
    damage.flip(copy.student / "unet" / "diffusion_pytorch_model.safetensors", 200)  # in its header
    (copy.path / "checkpoints" / "step-7.bak").mkdir()
    code, message = damage.distill("--resume", str(copy.path), "num_steps=2")
    assert code == 0, message
    for words in (
        "config.json is damaged",
        "it is restored from checkpoint step-1",
        "left out of",
        "step-7.bak",
        "student/ was recreated",
        "2 damaged lines of",
    ):
        assert words in message
    assert "Traceback" not in message
    assert damage.same(copy, whole, 2)
    assert copy.config() == whole.config() and copy.status().state == "done"
    for file in ("config.json", "diffusion_pytorch_model.safetensors"):
        weights, expected = ((r.student / "unet" / file).read_bytes() for r in (copy, whole))
        assert weights == expected


def test_a_setting_that_a_bit_changed_is_refused_and_put_back_as_the_refusal_says(copy, whole):
    """A valid config of another learning rate: with it the run would not be the run that it was."""
    file = copy.path / "config.json"
    values = json.loads(file.read_text())
    file.write_text(json.dumps(values | {"learning_rate": 0.5}))
    code, message = damage.distill("--resume", str(copy.path), "num_steps=2")
    assert code == 2 and "to resume it as it was trained, add learning_rate=0.0001" in message
    assert copy.checkpoints() == [1] and intact.good_checkpoints(copy)
    code, message = damage.distill("--resume", str(copy.path), "num_steps=2", "learning_rate=0.0001")
    assert code == 0, message
    assert damage.same(copy, whole, 2)


@pytest.mark.slow
def test_a_bit_anywhere_in_a_run_loses_nothing(whole, small, tmp_path):
    """One bit in every file of a run with two checkpoints."""
    run = RunFolder(path=shutil.copytree(whole.path, tmp_path / "run"))
    last = RunFolder(path=shutil.copytree(whole.path, tmp_path / "last"))
    assert damage.distill("--resume", str(last.path), "num_steps=3")[0] == 0
    rng = random.Random()  # no fixed seed: every run of this test tries other bits
    result = [
        damage.flip_and_resume(run, file, bit, last, tmp_path / "scratch")
        for file, bit in damage.positions(run, 1, rng)
    ]
    print(*result, sep="\n")
    assert [outcome for outcome in result if not outcome.survived] == []
    assert len({outcome.file for outcome in result}) == len([f for f in run.path.rglob("*") if _has_bits(f)])


def _has_bits(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0
