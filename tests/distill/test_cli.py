"""`koala distill` as it is typed: what it refuses, and what it says."""

import json

import pytest

from koala.cli.main import main


def test_an_estimate_needs_neither_the_model_nor_a_folder(capsys):
    assert main(["distill", "--estimate", "teacher=sdxl-lightning-4step", "--processes", "4", "--vram", "80"]) == 0
    output = capsys.readouterr().out
    assert "1.27e+21 if latents and embeddings were not cached" in output
    assert main(["distill", "--estimate", "--json", "--preset", "10-minutes"]) == 0
    assert json.loads(capsys.readouterr().out)["fits"] is True


def test_the_fields_are_listed(capsys):
    assert main(["distill", "--fields"]) == 0
    assert 'sa_mapping = "bottom"' in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "{new}", "lerning_rate=1"], "did you mean learning_rate"),
        (["--out", "{new}", "features=SAA"], "unknown feature 'SAA'; the features are SA, CA, FFN, Res, LF"),
        (["--out", "{new}", "stages=UP-7"], "unknown stage 'UP-7'"),
        (["--out", "{new}", "--step", "3"], "give it together with --resume"),
        (["--out", "{run}"], "already holds a run; resume it with --resume"),
        (["--resume", "{new}"], "holds no distillation"),
        (["--resume", "{run}"], "is done: 1 steps. Give num_steps=N"),
        (["--resume", "{run}", "--step", "9"], "has no checkpoint of step 9; it has 1"),
        (["--resume", "{run}", "seed=1"], "seed cannot change when a run is resumed: the steps so far drew"),
        (["--out", "{new}", "--processes", "8"], "give them together with --estimate"),
        (["--out", "{new}", "--preset", "2-minutes", "trackers=wandb"], "pip install wandb"),
    ],
)
def test_bad_use_is_one_line_with_its_remedy(trained, tmp_path, capsys, arguments, message):
    filled = [a.format(new=tmp_path / "new", run=trained.path) for a in arguments]
    assert main(["distill", *filled]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("koala: ") and message in error
    assert trained.checkpoints() == [1]


def test_a_run_goes_on_with_more_steps(copy, capsys):
    assert main(["distill", "--resume", str(copy.path), "num_steps=2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["state"] == "done"
    assert copy.checkpoints() == [1, 2]
