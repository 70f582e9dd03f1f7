"""What may change when a run goes on, and that whatever an error says to type works when it is typed."""

import ast
import dataclasses
import json
import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

import koala.cli.main
from koala.cli import distill
from koala.distill.config import DistillConfig
from koala.distill.run import intact, resuming
from koala.distill.run.folder import RunFolder, check_place
from koala.distill.run.intact import verify
from koala.distill.run.preflight import check_share
from koala.distill.run.student_folder import check_student
from koala.distill.trainer import train
from koala.errors import UserError

pytestmark = pytest.mark.long

ROOT = Path(__file__).resolve().parents[2]
FIELDS = [field.name for field in dataclasses.fields(DistillConfig)]
SETTING = rf"\b(?:{'|'.join(FIELDS)})="
TYPED = re.compile(rf"'?(--(?:out|resume|config|step) [^\s;]+|{SETTING}[^\s;']+)")


def test_every_field_of_a_config_has_one_answer():
    answers = [resuming.FREE_FIELDS, resuming.ON_REQUEST, resuming.FIXED.keys()]
    assert sorted(name for answer in answers for name in answer) == sorted(FIELDS)


def test_what_changes_from_here_on_is_asked_for_or_recorded(copy):
    config = copy.config()
    slower = dataclasses.replace(config, learning_rate=3e-5, accumulation=2)
    with pytest.raises(UserError, match="add accumulation=1 learning_rate=0.0001, or with .* accumulation=2 l"):
        verify(copy, 1, slower)
    verify(copy, 1, slower, asked=("learning_rate", "accumulation"))
    resuming.record(copy, 1, slower, config, processes=2)
    assert copy.history() == [
        {"step": 1, "processes": 2, "changes": {"learning_rate": [1e-4, 3e-5], "accumulation": [1, 2]}}
    ]
    verify(copy, 1, slower)  # as the history knows
    with pytest.raises(UserError, match="its learning_rate is"):
        verify(copy, 1, dataclasses.replace(slower, learning_rate=2e-5))
    resuming.record(copy, 1, config, config, processes=1)  # gone on from there once more
    assert [entry["processes"] for entry in copy.history()] == [1]


@pytest.mark.parametrize(
    "content", ["", "{}", "[1]", '[{"step": 1}]', '[{"step": 1, "processes": 1, "changes": {"a": 1}}]']
)
def test_a_damaged_history_is_named_and_begun_anew(copy, content):
    (copy.path / "history.json").write_text(content)
    with pytest.raises(UserError, match="history.json .*it is started anew when the run is resumed"):
        copy.history()
    resuming.record(copy, 1, copy.config(), copy.config(), processes=1)
    assert len(copy.history()) == 1


def test_more_steps_say_what_becomes_of_a_cosine():
    """Symptom: a run of 100 steps that went on to 200 had its learning rate leap from 2 % to half, without a word."""
    short = DistillConfig(schedule="cosine", learning_rate=1e-3, num_steps=100)
    (output,) = resuming.words_of_changes(dataclasses.replace(short, num_steps=200), short, 100)[1:]
    was, now = (1e-3 * (0.02 + 0.49 * (1 + math.cos(math.pi * share))) for share in (99 / 100, 100 / 200))
    assert f"was {was:.3g} in step 100 and is {now:.3g} in step 101: its cosine spans 200 steps now" in output
    constant = dataclasses.replace(short, schedule="constant")
    assert len(resuming.words_of_changes(dataclasses.replace(constant, num_steps=200), constant, 100)) == 1


# what an error says to type


def commands(message: str, arguments: list[str], new: Path) -> Iterator[list[str]]:
    """The command of every remedy in a message; settings alone go behind the arguments that were refused."""
    remedies = message.partition("; ")[2] or message.partition(". ")[2]
    for way in re.split(r",? or |; ", remedies):
        typed = [result.strip("',.") for result in TYPED.findall(way)]
        typed = [words for words in typed if not re.search(r"[= ](PLACE|N|K)$", words)]  # for the reader to fill in
        if typed:
            words = [word for each in typed for word in each.replace("NEW", str(new)).split(" ", 1)]
            yield words if {"--out", "--resume"} & set(words) else [*arguments, *words]


def execute(arguments: list[str]) -> None:
    """All of `koala distill` that can refuse, short of the training itself; a run goes on for two steps more."""
    if "--resume" in arguments and not any(word.startswith("num_steps") for word in arguments):
        arguments = [*arguments, "num_steps=3"]
    args = koala.cli.main.parser().parse_args(["distill", *arguments])
    plan = distill._planned(args, RunFolder(path=args.resume or args.out))
    if plan.step is None:
        check_student(plan.config)
        check_share(plan.config, 1)


def damage(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def set_in_config(run: RunFolder, **values) -> None:
    file = run.path / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def two_checkpoints(run: RunFolder) -> None:
    """A second checkpoint, whose manifest does not know its own name."""
    shutil.copytree(run.checkpoint(1), run.checkpoint(2))


RUN, OUT = ["--resume", "{run}"], ["--out", "{new}", "data=shapes"]
LORA = ["method=phased", "student_spec=sdxl", "lora_rank=8"]
CASES = {  # what was typed, and what was done to the run before
    "fixed": ([*RUN, "seed=3"], None),
    "another network": ([*RUN, "student_spec=koala-1b"], None),
    "changed by a bit": (RUN, lambda run: set_in_config(run, learning_rate=0.5)),
    "changed twice": (RUN, lambda run: set_in_config(run, learning_rate=0.5, seed=7, threads=3)),
    "changed order": (RUN, lambda run: set_in_config(run, seed=7)),
    "moved": (RUN, lambda run: set_in_config(run, data="/elsewhere")),
    "done": ([*RUN, "num_steps=1"], None),
    "damaged": (RUN, lambda run: damage(run.checkpoint(1) / "student.safetensors")),
    "a good one is left": (RUN, two_checkpoints),
    "all damaged": (
        RUN,
        lambda run: (damage(run.checkpoint(1) / "ema.safetensors"), (run.path / "config.json").unlink()),
    ),
    "begun already": (["--out", "{run}"], None),
    "not a run": (["--out", "{run}"], lambda run: [shutil.rmtree(run.path / "checkpoints"), *unnamed(run)]),
    "a file": (["--out", "{run}"], lambda run: (shutil.rmtree(run.path), run.path.write_text(""))),
    "muon in fp16": ([*OUT, "optimizer=muon", "precision=fp16"], None),
    "ema": ([*OUT, "ema_decay=1.5"], None),
    "of another method": ([*OUT, "method=phased", "features=SA,LF@UP-3", "lf_at_ends=false", "task_weight=0"], None),
    "phases": ([*OUT, "method=phased", "phases=3"], None),
    "solver steps": ([*OUT, "method=phased", "phases=8", "solver_steps=50"], None),
    "teacher steps": ([*OUT, "method=phased", "teacher_steps=11"], None),
    "guidance": ([*OUT, "method=guidance", "guidance_min=4", "guidance_max=3"], None),
    "no average": ([*OUT, "method=phased", "target=ema", "ema_decay=0"], None),
    "average elsewhere": ([*OUT, "method=phased", "target=ema", "ema_device=cpu"], None),
    "muon's own": ([*OUT, "optimizer=muon", "beta2=0.99"], None),
    "LoRA of a smaller student": ([*OUT, "method=phased", "lora_rank=8"], None),
    "LoRA by KOALA's method": ([*OUT, "student_spec=sdxl", "lora_rank=8"], None),
    "LoRA with muon": ([*OUT, *LORA, "optimizer=muon", "precision=fp32", "teacher_precision=fp32"], None),
    "LoRA with its average": ([*OUT, *LORA, "target=ema"], None),
    "LoRA in two precisions": ([*OUT, *LORA, "precision=fp32"], None),
    "no LoRA": ([*OUT, "method=phased", "student_spec=sdxl", "lora_alpha=4"], None),
    "calls of another kind of draw": ([*OUT, "calls=2"], None),
    "calls that nothing divides": ([*OUT, "timesteps=calls", "calls=3"], None),
    "no setting": ([*OUT, "batch_size"], None),
    "student of another spec": ([*OUT, "student_spec=koala-1b", "student_init={run}/student"], None),
}


def unnamed(run: RunFolder) -> list[None]:
    return [(run.path / name).unlink() for name in ("config.json", "status.json")]


def refused(name: str, copy: RunFolder, new: Path) -> tuple[list[str], str]:
    arguments, act = CASES[name]
    arguments = [word.format(run=copy.path, new=new) for word in arguments]
    if act:
        act(copy)
    with pytest.raises(UserError) as error:
        execute(arguments)
    return [word for word in arguments if not word.startswith("batch_size")], str(error.value)


def test_a_lora_run_is_begun_anew_at_its_teacher_as_it_takes_no_other_beginning(small, tmp_path):
    """Symptom: every "start a new run" named its student, which a run that trains a LoRA refuses."""
    run = RunFolder(path=tmp_path / "run")
    (run.student / "unet").mkdir(parents=True)
    whole = dict(method="phased", student_spec="sdxl", min_snr_gamma=0.0, guidance_min=2.0, guidance_max=2.0)
    config = small(**whole, lora_rank=4)
    (run.path / "config.json").write_text(json.dumps(config.to_dict()))
    damaged = DistillConfig(**config.to_dict() | {"seed": 3})
    for message in (
        str(pytest.raises(UserError, resuming.refuse_fixed, run, damaged, config, ("seed",)).value),
        f"damaged; {intact._from_student(run)}",
    ):
        (typed,) = (c for c in commands(message, [], tmp_path / "new") if "--out" in c)
        assert not any("student_init" in word for word in typed), message
        execute(typed)
    (run.path / "config.json").unlink()
    run.lora.touch()  # all that tells it from another run then
    assert intact._from_student(run) == "start over with --out NEW"


SEEN: dict[str, str] = {}


@pytest.mark.parametrize("name", CASES)
def test_what_a_refusal_says_to_type_works(copy, tmp_path, name):
    arguments, message = refused(name, copy, tmp_path / "typed")
    result = list(commands(message, arguments, tmp_path / "new"))
    print(message, *result, sep="\n")
    assert result, message
    for typed in result:
        execute(typed)


# Messages that this machine cannot be made to say here, and where what they say to type is typed instead.
ELSEWHERE = {
    "needs a CUDA GPU": "adamw is the default of every test",
    "needs bitsandbytes": "adamw is the default of every test",
    "ema_device=cpu does not work with FSDP": "tests/distill/test_processes.py shards without it",
    "target=ema does not work with FSDP": "target=student is the default of every test",
    "teaches the effect of guidance": "tests/distill/test_few_step_runs.py sets a range",
    "is not installed: pip install": "of a package index",
    "is being trained by another process": "test_a_name_is_free_again_after_a_typing_error, in a new folder",
    "changed since checkpoint": "test_a_moved_folder_of_the_same_pictures_is_gone_on_with",
    "is no longer finite": "test_what_a_broken_loss_says_to_type_is_allowed",
    "gradients overflowed": "test_what_a_broken_loss_says_to_type_is_allowed",
    "ask about another machine": "tests/distill/test_cli.py",
    "names a checkpoint of a run": "tests/distill/test_cli.py",
    "a resumed run keeps its config": "leaves options out",
    "is not sorted": "tests/distill/data/test_brought.py runs the command",
    "neither a .parquet nor a .tar file": "test_sources.py, test_one_picture_is_refused_and_its_folder_is_taken",
}


def messages() -> Iterator[str]:
    """Every refusal in the code of a run that says what to type: its constant words, with {} for what is filled in."""

    def words(node: ast.expr) -> str:
        if isinstance(node, ast.Constant):
            return str(node.value)
        if isinstance(node, ast.JoinedStr):
            return "".join(words(part) if isinstance(part, ast.Constant) else "{}" for part in node.values)
        return words(node.left) + words(node.right) if isinstance(node, ast.BinOp) else "{}"

    for file in [*(ROOT / "koala" / "distill").rglob("*.py"), ROOT / "koala" / "cli" / "distill.py"]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in ("UserError", "BrokenLoss") and node.args:
                text = words(node.args[0])
                if re.search(rf" --[a-z]+|{SETTING}", text.partition("; ")[2] or text):
                    yield text


def test_no_refusal_says_what_to_type_without_being_tried(copy, tmp_path):
    """A new message fails here until it has a case above."""
    seen = []
    for number, name in enumerate(CASES):
        run = RunFolder(path=shutil.copytree(copy.path, tmp_path / f"run-{number}"))
        seen.append(refused(name, run, tmp_path / "typed")[1])
    untried = [
        text
        for text in messages()
        if not any(words in text for words in ELSEWHERE)
        and not any(re.search(re.escape(text).replace(r"\{\}", ".*"), message, re.DOTALL) for message in seen)
    ]
    assert untried == []
    stale = [words for words in ELSEWHERE if not any(words in text for text in messages())]
    assert stale == []


def test_what_a_broken_loss_says_to_type_is_allowed(copy):
    for setting in ("learning_rate=2.5e-05", "precision=bf16", "precision=fp32", "feature_weight=0"):
        execute(["--resume", str(copy.path), "num_steps=2", setting])


def test_a_batch_that_processes_cannot_share_has_a_remedy():
    with pytest.raises(UserError, match="choose accumulation=2"):
        check_share(DistillConfig(batch_size=12, accumulation=3), 3)
    check_share(DistillConfig(batch_size=12, accumulation=2), 3)
    with pytest.raises(UserError, match="start 1 or 2 processes, or for a new run choose batch_size=6"):
        check_share(DistillConfig(batch_size=4), 3)
    check_share(DistillConfig(batch_size=6), 3)


# a run's name and folder


def test_a_name_is_free_again_after_a_typing_error(small, tmp_path):
    """Symptom: `data=picturs` used up the run's name, and so did a spec that is no part of the teacher."""
    run = RunFolder(path=tmp_path / "run")
    for typed in (
        {"data": str(tmp_path / "picturs")},
        {"student_spec": "0,2,12/-/12+12,2+2,0+0"},
        {"trackers": ("wandb",)},
    ):
        with pytest.raises(UserError):
            train(run, small(**typed))
        assert not run.path.exists(), typed
    run.path.mkdir()
    (run.path / "notes.txt").write_text("mine")
    with pytest.raises(UserError):
        train(run, small(data=str(tmp_path / "picturs")))
    assert [file.name for file in run.path.iterdir()] == ["notes.txt"]


def test_a_run_without_checkpoints_may_change_anything(tmp_path):
    run = RunFolder(path=tmp_path / "run")
    run.path.mkdir()
    run.write_config(DistillConfig())
    execute(["--resume", str(run.path), "seed=3", "student_spec=koala-1b", "batch_size=4"])
    execute(["--out", str(run.path), "seed=3", "student_spec=koala-1b"])


@pytest.mark.parametrize(
    "name", ["config.json", "student/model_index.json", "samples/1.png", "checkpoints/step-5/mine", "metrics.jsonl"]
)
def test_a_folder_with_other_things_where_a_run_writes_is_refused(tmp_path, name):
    run = RunFolder(path=tmp_path / "run")
    file = run.path / name
    file.parent.mkdir(parents=True)
    file.write_text('{"mine": 1}')
    with pytest.raises(UserError, match=r"choose another folder, for example --out .*-2"):
        check_place(run)
    assert file.read_text() == '{"mine": 1}'


def test_a_lost_student_is_made_anew_from_the_checkpoint_and_nothing_else_is_lost(copy, capsys):
    weights = copy.student / "unet" / "diffusion_pytorch_model.safetensors"
    before = {p.relative_to(copy.path): p.read_bytes() for p in copy.student.rglob("*") if p.is_file()}
    shutil.rmtree(copy.student)
    assert koala.cli.main.main(["distill", "--resume", str(copy.path)]) == 0
    assert "student/ was recreated from checkpoint step-1" in capsys.readouterr().out
    assert {p.relative_to(copy.path): p.read_bytes() for p in copy.student.rglob("*") if p.is_file()} == before
    (copy.student / "card.md").write_text("mine")
    (copy.student / "unet" / "config.json").write_text("")
    assert koala.cli.main.main(["distill", "--resume", str(copy.path)]) == 0
    assert (copy.student / "card.md").read_text() == "mine" and weights.read_bytes() == before[
        weights.relative_to(copy.path)
    ]
    assert not (copy.path / ".cut").exists()
    assert koala.cli.main.main(["distill", "--resume", str(copy.path)]) == 2  # done, and all of it is there
