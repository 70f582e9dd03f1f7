"""Runs that stop, go on, fail and say why: in one process, on real networks and data."""

import dataclasses
import json
import resource
import shutil

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from filelock import FileLock
from PIL import Image
from safetensors.torch import load_file, save_file

from koala.cli.main import main
from koala.distill import draws
from koala.distill.draws import draw
from koala.distill.loss.step import BrokenLoss
from koala.distill.run import intact, snapshots
from koala.distill.run.folder import RunFolder
from koala.distill.trainer import train
from koala.errors import UserError
from koala.models.cards import EMBEDDED
from koala.models.library import Library
from koala.request import GenerationRequest
from koala.sampling.generate import generate

pytestmark = pytest.mark.long


@pytest.fixture
def run(tmp_path) -> RunFolder:
    return RunFolder(path=tmp_path / "run")


def tensors(run: RunFolder, step: int) -> dict[str, torch.Tensor]:
    result = {}
    for name in ("student", "ema", "optimizer"):
        values = load_file(run.checkpoint(step) / f"{name}.safetensors")
        result |= {f"{name}/{key}": value for key, value in values.items()}
    return result


def assert_same(weights: dict, expected: dict) -> None:
    assert weights.keys() == expected.keys()
    different = [name for name in weights if not torch.equal(weights[name], expected[name])]
    assert different == []


@pytest.mark.parametrize(
    "settings",
    [  # test_killed.py resumes with muon by default
        {"optimizer": "adamw"},
        pytest.param({"optimizer": "muon"}, marks=pytest.mark.slow),
        pytest.param({"accumulation": 2}, marks=pytest.mark.slow),
    ],
)
def test_a_resumed_run_ends_with_the_very_same_weights(small, tmp_path, settings):
    whole, halves = (RunFolder(path=tmp_path / n) for n in ("whole", "halves"))
    train(whole, small(num_steps=2, **settings))
    train(halves, small(num_steps=1, **settings))
    train(halves, small(num_steps=2, **settings), resume_from=1)
    assert_same(tensors(halves, 2), tensors(whole, 2))
    lines = [[{k: e[k] for k in ("kind", "step", "loss")} for e in r.metrics()] for r in (whole, halves)]
    assert [e for e in lines[0] if e["kind"] == "train"] == [e for e in lines[1] if e["kind"] == "train"]


def test_accumulation_gives_the_losses_of_one_pass(small, tmp_path):
    losses, norms = [], []
    for accumulation in (1, 2):
        run = RunFolder(path=tmp_path / str(accumulation))
        train(run, small(num_steps=2, accumulation=accumulation))
        entries = [e for e in run.metrics() if e["kind"] == "train"]
        losses.append([e["loss"] for e in entries])
        norms.append([e["grad_norm"] for e in entries])  # which Adam and clipping would hide
    assert norms[1] == pytest.approx(norms[0], rel=1e-3)
    differences = [abs(a - b) for a, b in zip(*losses, strict=True)]
    print(f"max difference {max(differences):.3g}, mean {sum(differences) / len(differences):.3g}")
    assert max(differences) < 1e-5


def test_no_step_repeats_the_draws_of_another(small, run, monkeypatch):
    """Step k has the places k * batch_size and on, in the order of its passes."""
    asked = []

    def spy(config, indices, shape):
        asked.append(list(indices))
        return draw(config, indices, shape)

    monkeypatch.setattr(draws, "draw", spy)
    train(run, small(num_steps=3, batch_size=4, accumulation=2))
    assert asked[0] == [0]  # the look at the gradients
    assert asked[1:] == [[0, 1], [2, 3], [4, 5], [6, 7], [8, 9], [10, 11]]


@pytest.mark.slow
def test_pictures_fade_as_the_teachers_did_or_as_was_chosen(trained, run):
    """`trained` says nothing of it, and its teacher learned on the straight path."""
    for chosen, same in (("straight", True), ("ddpm", False)):
        train(run, dataclasses.replace(trained.config(), noising=chosen))
        loss, default_loss = (next(e["loss"] for e in r.metrics() if e["kind"] == "train") for r in (run, trained))
        assert (loss == default_loss) is same
        shutil.rmtree(run.path)


def test_a_run_leaves_pictures_curves_a_score_and_a_pipeline_that_diffusers_loads(small, run):
    prompts, threads = ("a blue star",), torch.get_num_threads()
    train(run, small(validate_every=2, validation_pictures=4, validation_prompts=prompts, score_prompts=1))
    assert run.status().state == "done"
    assert torch.get_num_threads() == threads
    kinds = [(e["kind"], e["step"]) for e in run.metrics()]
    assert ("validation", 0) in kinds and ("validation", 2) in kinds and ("score", 2) in kinds
    terms = {"loss", "task", "output", "SA", "LF"}
    assert all(terms <= e.keys() for e in run.metrics() if e["kind"] != "score")
    quarter = next(e for e in run.metrics() if e["kind"] == "validation")["timesteps"]
    assert list(quarter) == ["0-249", "250-499", "500-749", "750-999"]
    names = {f"{when}-0.png" for when in ("teacher", "before", "step-2")}
    assert names <= {f.name for f in run.samples.iterdir()}
    assert json.loads((run.samples / "prompts.json").read_text()) == list(prompts)
    average = load_file(run.checkpoint(2) / "ema.safetensors")
    pipeline = StableDiffusionXLPipeline.from_pretrained(run.student)
    # in the precision of the teacher's own files
    assert all(torch.equal(p, average[n].half().float()) for n, p in pipeline.unet.named_parameters())
    assert _apart(run) < 1 < 10 < _apart(run, guidance=7.5)


def _apart(run: RunFolder, **settings) -> float:
    """How far the run's last picture is from what its student's folder draws, of 255."""
    request = GenerationRequest(model=str(run.student), prompt="a blue star", seed=0, width=128, height=128, **settings)
    drawn = generate(request, Library("cpu").get(request.model)).images[0]
    saved = np.asarray(Image.open(run.samples / "step-2-0.png"), dtype=float)
    return np.abs(saved - np.asarray(drawn, dtype=float)).mean()


def test_validation_is_the_same_every_time(trained, run):
    train(run, trained.config())
    losses = [[e for e in r.metrics() if e["kind"] == "validation"] for r in (trained, run)]
    assert losses[0] == losses[1] and len(losses[0]) == 2


@pytest.mark.slow
def test_a_validation_loss_falls_while_the_student_learns(small, run):
    train(run, small(num_steps=30, optimizer="muon", learning_rate=1e-3, ema_decay=0.9, validate_every=30))
    first, last = (e for e in run.metrics() if e["kind"] == "validation")
    print(first["loss"], last["loss"])
    assert last["loss"] < 0.8 * first["loss"]


@pytest.mark.slow
def test_the_last_checkpoints_and_the_best_one_stay(small, run):
    train(run, small(num_steps=5, checkpoint_every=1, keep_last=2))
    assert run.checkpoints() == [4, 5]
    snapshots.tidy(run, keep_last=1, best_step=4)
    assert run.checkpoints() == [4, 5]
    snapshots.tidy(run, keep_last=1, best_step=None)
    assert run.checkpoints() == [5]


def test_a_damaged_checkpoint_is_refused_and_the_last_good_one_offered(small, run):
    config = small(num_steps=2, checkpoint_every=1)
    train(run, config)
    intact.verify(run, 2, config)
    file = run.checkpoint(2) / "optimizer.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(UserError, match="step-2 .* is damaged: optimizer.safetensors .*; resume with --step 1"):
        intact.verify(run, 2, config)
    (run.checkpoint(1) / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="no other checkpoint of this run is good"):
        intact.verify(run, 2, config)


@pytest.mark.slow
def test_a_run_that_goes_on_from_an_earlier_checkpoint_writes_the_later_ones_anew(small, run):
    config = small(num_steps=3, checkpoint_every=1, validate_every=0)
    train(run, config)
    file = run.checkpoint(3) / "ema.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    train(run, config, resume_from=2)
    intact.verify(run, 3, config)
    assert [e["step"] for e in run.metrics() if e["kind"] == "train"] == [1, 2, 3]


@pytest.mark.slow
def test_the_best_student_is_kept_where_validations_and_checkpoints_fall_apart(small, run):
    train(run, small(num_steps=4, checkpoint_every=4, keep_last=1, validate_every=1, learning_rate=1e-3))
    losses = {e["step"]: e["loss"] for e in run.metrics() if e["kind"] == "validation" and e["step"]}
    best = min(losses, key=losses.get)
    assert snapshots.position(run, 4)[0].best_step == best
    assert run.checkpoints() == sorted({best, 4})


def test_a_run_that_was_killed_after_its_last_checkpoint_is_finished(copy):
    run, config = copy, copy.config()
    weights = run.student / "unet" / "diffusion_pytorch_model.safetensors"
    finished = weights.read_bytes()
    weights.write_bytes((EMBEDDED / "tiny-koala-700m" / "unet" / weights.name).read_bytes())  # what a cut would be
    run.write_status(dataclasses.replace(run.status(), state="running"))
    train(run, config, resume_from=1)
    assert run.status().state == "done"
    assert weights.read_bytes() == finished


def test_two_trainers_never_share_a_folder(small, run):
    run.path.mkdir()
    with FileLock(run.path / ".lock"), pytest.raises(UserError, match="is being trained by another process"):
        train(run, small(num_steps=1))


def test_any_error_ends_the_run_with_its_words(small, run, monkeypatch):
    monkeypatch.setattr(draws, "BatchOrder", lambda *a: {}["nothing"])
    with pytest.raises(KeyError):
        train(run, small(num_steps=1))
    assert run.status().state == "failed" and "nothing" in run.status().message


@pytest.mark.slow
def test_muon_leaves_weights_alone_that_no_term_reaches(small, run):
    settings = dict(task_weight=0.0, output_weight=0.0, lf_at_ends=False, stages=("DW-2",), optimizer="muon")
    train(run, small(num_steps=1, **settings))
    assert run.status().state == "done"


def test_a_tracker_gets_the_curves(small, run):
    pytest.importorskip("tensorboard")
    train(run, small(num_steps=1, trackers=("tensorboard",)))
    assert list(run.path.rglob("events.out.tfevents*"))


def test_a_run_does_not_go_on_with_other_data(small, run, tmp_path):
    def draw(colour):
        Image.new("RGB", (128, 128), colour).save(folder / "b.png")

    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("a", "b", "c"):
        draw("red")
        (folder / "b.png").rename(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text("a red circle")
    config = small(num_steps=1, data=str(folder), captions="short", short_caption="txt", validation_pictures=1)
    train(run, config)
    draw("blue")
    with pytest.raises(UserError, match="changed since checkpoint step-1 was written.*data=PLACE.*student_init="):
        train(run, dataclasses.replace(config, num_steps=2), resume_from=1)
    assert run.checkpoints() == [1] and run.config() == config  # nothing was written before the data were accepted


@pytest.mark.slow
def test_a_moved_folder_of_the_same_pictures_is_gone_on_with(small, run, tmp_path):
    for k in range(3):
        folder = tmp_path / "pictures"
        folder.mkdir(exist_ok=True)
        Image.new("RGB", (128, 128), (80 * k, 0, 0)).save(folder / f"{k}.png")
        (folder / f"{k}.txt").write_text("a red circle")
    config = small(num_steps=1, data=str(folder), captions="short", short_caption="txt", validation_pictures=1)
    train(run, config)
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "pictures")
    shutil.rmtree(folder)
    typed = ["--resume", str(run.path), f"data={moved}", "num_steps=2", "gradient_checkpointing=true"]
    assert main(["distill", *typed, "accumulation=2", "ema_device=cpu", "learning_rate=5e-05"]) == 0
    assert run.status().state == "done" and run.checkpoints() == [1, 2]
    (entry,) = run.history()
    assert entry["step"] == 1 and entry["changes"]["data"] == [str(folder), str(moved)]
    rates = [line["learning_rate"] for line in run.metrics() if line["kind"] == "train"]
    assert rates == [1e-4, 5e-5]


def test_a_checkpoint_of_another_run_is_refused(trained):
    config = trained.config()
    with pytest.raises(UserError, match="belongs to another run: its learning_rate is 0.0001, this run's 0.5"):
        intact.verify(trained, 1, dataclasses.replace(config, learning_rate=0.5))
    intact.verify(trained, 1, dataclasses.replace(config, num_steps=7, log_every=3))


def test_a_full_disk_stops_with_the_last_checkpoint_whole(copy):
    run, config = copy, copy.config()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, hard))  # less than the student's weights
    try:
        with pytest.raises(OSError, match="could not be written"):
            train(run, dataclasses.replace(config, num_steps=2), resume_from=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert run.status().state == "failed" and "could not be written" in run.status().message
    assert run.checkpoints() == [1]
    assert not list((run.path / "checkpoints").glob(".*partial"))
    intact.verify(run, 1, config)
    train(run, dataclasses.replace(config, num_steps=2), resume_from=1)
    assert run.status().state == "done"


def test_a_loss_that_breaks_ends_the_run_with_its_name(copy):
    run, config = copy, copy.config()
    file = run.checkpoint(1) / "student.safetensors"
    weights = load_file(file)
    weights["down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0.bias"][0] = float("inf")
    save_file(weights, file)
    with pytest.raises(BrokenLoss, match=r"step 2: the SA term of DW-2"):
        train(run, dataclasses.replace(config, num_steps=2), resume_from=1)
    status = run.status()
    assert status.state == "failed" and "the SA term of DW-2" in status.message
    assert run.checkpoints() == [1]


def test_a_spec_that_is_no_part_of_the_teacher_is_refused(small, run):
    with pytest.raises(UserError, match="12 transformer blocks, tiny-sdxl only 10"):
        train(run, small(student_spec="0,2,12/-/12+12,2+2,0+0"))


@pytest.mark.slow
def test_a_student_goes_on_from_another_one(small, trained, run, tmp_path):
    train(run, small(num_steps=1, student_init=str(trained.student), learning_rate=1e-9))
    before, after = (load_file(r.student / "unet" / "diffusion_pytorch_model.safetensors") for r in (trained, run))
    assert max((before[n] - after[n]).abs().max().item() for n in before) < 1e-6
    with pytest.raises(UserError, match="choose a model of the same spec"):
        train(RunFolder(path=tmp_path / "third"), small(student_spec="koala-1b", student_init=str(trained.student)))
