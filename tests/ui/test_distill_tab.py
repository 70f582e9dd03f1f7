"""The Distill tab: every setting is there and means what it says, and what it shows is what the run wrote."""

import dataclasses
import json
import os
import re
import shlex
import shutil
import time
from pathlib import Path

import gradio as gr
import pytest
from PIL import Image

from koala.cli import parser
from koala.distill import runs
from koala.distill.config import DistillConfig, read
from koala.distill.presets import PRESETS
from koala.distill.run_folder import RunFolder, Status, process_started
from koala.registry import EMBEDDED
from koala.request import RequestError
from koala.ui import distill_curves, distill_fields, distill_panel
from koala.ui.distill_metrics import Follower, Metrics, thinned
from koala.ui.distill_runs import PUBLIC_KEPT, PUBLIC_MINUTES, PUBLIC_STEPS, Runs, teacher_scores
from koala.ui.session import Session
from koala.ui.tabs.distill import Distill

QUICK = PRESETS["2-minutes"].config


class Visitor:
    """What a handler knows of who sent an event."""

    session_hash = "one"


class Sent:
    """An event of the list of runs, or of the row of tabs."""

    def __init__(self, value: str = "", **data):
        self.value, self._data = value, data


def written(root: Path, name: str, config: DistillConfig = QUICK, **status) -> RunFolder:
    """A run's folder as the trainer leaves it: config, status, metrics, and nothing else yet."""
    run = RunFolder(path=root / name)
    run.path.mkdir(parents=True)
    run.write_config(config)
    run.write_status(Status(**{"state": "done", "step": 20, "num_steps": 20, "started": 1e9} | status))
    for step in range(1, 21):
        terms = {"task": 1 / step, "output": 2 / step, "SA": 0.5, "LF": 0.25}
        run.log({"kind": "train", "step": step, "loss": sum(terms.values()), **terms, "seconds": float(step)})
    return run


def with_student(run: RunFolder, step: int = 20) -> RunFolder:
    shutil.copytree(EMBEDDED / "tiny-koala-700m", run.student)
    run.checkpoint(step).mkdir(parents=True)
    return run


def with_samples(run: RunFolder, prompt: str = "a red circle") -> RunFolder:
    run.samples.mkdir()
    (run.samples / "prompts.json").write_text(json.dumps([prompt]))
    for stem, colour in (("teacher", "red"), ("before", "grey"), ("step-10", "pink"), ("step-20", "orange")):
        Image.new("RGB", (64, 64), colour).save(run.samples / f"{stem}-0.png")
    return run


def living() -> dict:
    """The status of a run whose process is this one."""
    return {"state": "running", "pid": os.getpid(), "pid_started": process_started(os.getpid())}


@pytest.fixture
def session():
    return Session(device="cpu")


@pytest.fixture
def public():
    return Session(device="cpu", local=False)


@pytest.fixture
def tab(session, tmp_path, monkeypatch):
    monkeypatch.setenv("KOALA_RUNS", str(tmp_path))
    with gr.Blocks():
        return Distill(session)


def named(tab, update: dict) -> dict:
    return {name: update[c] for name, c in vars(tab).items() if isinstance(c, gr.blocks.Block) and c in update}


def look(tab, chosen: str = "", beside: str = "", sent: dict | None = None) -> dict:
    return named(tab, tab.look(chosen, beside, sent or {}))


# --- settings


def test_every_field_of_a_config_is_on_the_page_with_its_help(tab):
    assert set(tab.fields) == {f.name for f in dataclasses.fields(DistillConfig)}
    for field in dataclasses.fields(DistillConfig):
        shown = tab.fields[field.name].info.lower().rstrip(".")
        assert shown == field.metadata["help"].lower()
    labels = [component.label for component in tab.fields.values()]
    assert len(set(labels)) == len(labels) and "Min SNR gamma" in labels


@pytest.mark.parametrize("config", [p.config for p in PRESETS.values()], ids=list(PRESETS))
def test_what_the_page_shows_of_a_config_is_that_config(config):
    names = list(distill_fields.FIELDS)
    values = dict(zip(names, distill_fields.shown(config, names), strict=True))
    assert distill_fields.read(DistillConfig(), values) == config


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("num_steps", None, "num_steps must be a whole number"),
        ("num_steps", 0, "num_steps must be 1 or more"),
        ("features", ["SB"], "the features are SA, CA, FFN, Res, LF"),
        ("learning_rate", 0, "learning rate must be above 0"),
        ("captions", "long", "captions must be one of short, detailed, mixed"),
    ],
)
def test_a_setting_that_cannot_work_is_named(name, value, said):
    with pytest.raises(RequestError, match=said):
        distill_fields.read(QUICK, {name: value})


def test_prompts_are_lines_and_a_feature_may_name_its_stage():
    found = distill_fields.read(QUICK, {"validation_prompts": "a red, circle\n\n a star ", "features": ["LF@UP-3"]})
    assert found.validation_prompts == ("a red, circle", "a star") and found.features == ("LF@UP-3",)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_command_for_a_terminal_is_the_same_run(tmp_path, preset):
    changes = {"seed": 7, "features": ("SA", "LF@UP-3"), "learning_rate": 2e-5, "gradient_checkpointing": True}
    config = dataclasses.replace(PRESETS[preset].config, validation_prompts=("a, b", "c"), **changes)
    shown = distill_panel.Shown(
        run=written(tmp_path, "a-1", config), status=Status(state="done", step=1, num_steps=1), metrics=Metrics(),
        config=config,
    )  # fmt: skip
    html = distill_panel.about(shown, list(PRESETS.values()))
    command = re.search("<code>(.*)</code>", html)[1].replace("&#x27;", "'").replace("&quot;", '"')
    args = parser().parse_args(shlex.split(command)[3:])
    assert read(args.config, args.settings, PRESETS[args.preset].config) == config
    assert args.preset == preset


def test_a_preset_fills_every_field(tab):
    told, *values = tab.fill("10-minutes")
    found = distill_fields.read(DistillConfig(), dict(zip(tab.fields, values, strict=True)))
    assert found == PRESETS["10-minutes"].config and PRESETS["10-minutes"].text in told


def test_an_earlier_runs_settings_come_back(tab):
    config = dataclasses.replace(QUICK, seed=41, captions="short")
    written(tab.runs.root, "old-1", config)
    preset, _, *values = tab.take("old-1")
    assert preset is None
    assert distill_fields.read(DistillConfig(), dict(zip(tab.fields, values, strict=True))) == config


# --- metrics and curves


def test_metrics_are_read_on_from_where_they_ended(tmp_path):
    run = written(tmp_path, "a-1")
    follower = Follower(run)
    assert len(follower.read().train) == 20
    with run.metrics_file.open("a") as file:
        file.write('{"kind": "train", "step": 21, "lo')
    assert len(follower.read().train) == 20  # half a line is none
    with run.metrics_file.open("a") as file:
        file.write('ss": 0.5}\n')
    assert follower.read().curve("train", "loss")[-1] == (21, 0.5)


def test_a_resumed_runs_metrics_begin_again(tmp_path):
    """Symptom: steps that were taken twice stood twice in the curves."""
    run = written(tmp_path, "a-1")
    follower = Follower(run)
    follower.read()
    run.forget_metrics_after(5)
    for step in range(6, 40):
        run.log({"kind": "train", "step": step, "loss": 1.0})
    assert [step for step, _ in follower.read().curve("train", "loss")] == list(range(1, 40))


def test_a_long_curve_is_thinned_to_means_and_keeps_its_end():
    curve = [(step, float(step % 2)) for step in range(50_001)]
    found = thinned(curve)
    assert len(found) <= 240 and found[-1] == curve[-1]
    assert all(abs(value - 0.5) < 0.02 for _, value in found[:-2])
    assert thinned(curve[:100]) == curve[:100]


def test_every_term_has_its_figure_and_two_runs_share_one(tmp_path):
    one, two = (("one <b>", Follower(written(tmp_path, "a-1")).read()), ("two", Metrics()))
    html = distill_curves.terms([one], {})
    assert re.findall("<strong>(.*?)</strong>", html) == ["Loss", "Task", "Output", "SA", "LF"]
    assert html.count("<polyline") == 5 and "<b>" not in html
    two[1].train.extend({"step": s, "loss": 9.0, "SA": float("nan")} for s in (1, 30))
    both = distill_curves.terms([one, two], {})
    assert both.count("<polyline") == 6 and both.count("kd-line kd-b") == 1
    assert "nan" not in both


def test_a_figures_lines_stay_within_it():
    for values in ([5.0], [0.0, 0.0], [1e-5, 3.0], [-1.0, 2.0], [1e-30, 1e30]):
        line = distill_curves.Line(name="x", curve=list(enumerate(values)))
        html = distill_curves.figure("T", "w", [line])
        heights = [float(b) for _, b in re.findall(r"([\d.-]+),([\d.-]+)", html.split("polyline")[-1])]
        assert all(0 <= b <= distill_curves.HEIGHT for b in heights)
        assert html.count('class="kd-rule"') <= 6


def test_the_score_is_shown_beside_the_teachers():
    metrics = Metrics(score=[{"step": 0, "one_object": 0.0}, {"step": 10, "one_object": 0.5}])
    teacher = teacher_scores(QUICK)
    html = distill_curves.terms([("a", metrics)], teacher)
    assert "50 %" in html and f"teacher {100 * teacher['one_object']:.0f} %" in html
    assert teacher["one_object"] > 0.5 and teacher_scores(dataclasses.replace(QUICK, teacher="sdxl-base")) == {}


# --- the page


def test_the_first_visit_says_what_this_is(tab):
    shown = look(tab)
    assert "A student of your own" in shown["standing"] and shown["all"] == "" and shown["curves"] == ""
    assert (
        not any(shown[b]["visible"] for b in ("stop", "resume", "reuse", "ask_delete")) and not shown["timer"]["active"]
    )


def test_a_run_under_way_is_shown_and_can_only_be_stopped(tab):
    run = written(tab.runs.root, "a-1", **living(), steps_per_second=0.5, seconds_left=125.0, num_steps=40)
    written(tab.runs.root, "b-1")
    shown = look(tab)
    assert shown["chosen"] == "a-1" and shown["timer"]["active"]
    assert "2 min 5 s" in shown["standing"] and "width:50.0%" in shown["standing"]
    visible = {name for name in ("stop", "resume", "step", "reuse", "ask_delete") if shown[name]["visible"]}
    assert visible == {"stop", "reuse"} and not shown["start"]["interactive"]
    run.write_status(dataclasses.replace(run.status(), state="done"))
    after = look(tab, "a-1")
    assert (
        after["start"]["interactive"]
        and not after["timer"]["active"]
        and not after["stop"]["visible"]
        and after["ask_delete"]["visible"]
    )


def test_only_what_changed_is_sent_again(tab):
    run = written(tab.runs.root, "a-1", **living())
    first = look(tab)
    again = look(tab, "a-1", "", first["sent"])
    assert set(again) == {"chosen", "beside", "sent"}
    run.log({"kind": "train", "step": 21, "loss": 0.5})
    assert {"curves", "standing"} <= set(look(tab, "a-1", "", first["sent"])) - {"chosen", "beside", "sent"}


def test_a_reload_shows_the_run_that_was_chosen(tab):
    """The browser keeps its name; one that is gone makes way for the newest."""
    for age, name in enumerate(("a-1", "b-1")):
        os.utime(written(tab.runs.root, name).path / "config.json", (age, age))
    assert look(tab)["chosen"] == "b-1" and look(tab, "a-1")["chosen"] == "a-1" and look(tab, "gone")["chosen"] == "b-1"


def test_coming_back_to_the_tab_tells_all(tab):
    written(tab.runs.root, "a-1", **living())
    sent = look(tab)["sent"]
    assert "standing" not in named(tab, tab.look("a-1", "", sent))  # nothing is new
    back = named(tab, tab.turn("a-1", "", sent))
    assert back["timer"]["active"] and "standing" in back


def test_two_runs_curves_lie_over_each_other_until_asked_away(tab):
    for name in ("a-1", "b-1"):
        written(tab.runs.root, name)
    both = named(tab, tab.choose(Sent(beside="b-1"), "a-1", "", {}))
    assert both["beside"] == "b-1" and "kd-line kd-b" in both["curves"] and ">compared<" in both["all"]
    assert named(tab, tab.choose(Sent(beside="b-1"), "a-1", "b-1", {}))["beside"] == ""
    assert named(tab, tab.choose(Sent(run="b-1"), "a-1", "b-1", {}))["beside"] == ""  # with itself it is not compared


def test_teacher_before_and_the_newest_pictures_stand_together(tab):
    with_samples(written(tab.runs.root, "a-1"), "a <i>red</i> circle")
    html = look(tab)["pictures"]
    assert re.findall("<figcaption>(.*?)</figcaption>", html) == ["teacher", "before training", "step 20"]
    assert "<i>" not in html and html.count("data:image/webp") == 3


def test_whatever_a_run_wrote_is_escaped(tab):
    evil = "<img src=x onerror=alert(1)>"
    run = written(tab.runs.root, "a-1", dataclasses.replace(QUICK, data=evil), state="failed", message=evil)
    (run.path / "log.txt").write_text(evil)
    shown = look(tab)
    assert "<img" not in "".join(v for v in shown.values() if isinstance(v, str))
    assert "&lt;img" in shown["standing"] and "&lt;img" in shown["log"] and "&lt;img" in shown["about"]


def test_a_folder_that_cannot_be_read_says_so_and_can_be_deleted(tab):
    run = written(tab.runs.root, "a-1")
    (run.path / "config.json").write_text('{"no_such_field": 1}')
    shown = look(tab)
    assert "no_such_field" in shown["standing"] and shown["ask_delete"]["visible"] and not shown["resume"]["visible"]
    tab.remove("a-1", "", {})
    assert not run.path.exists()


def test_deleting_asks_first(tab):
    run = written(tab.runs.root, "a-1")
    row, question = tab.ask("a-1")
    assert row.visible and "Delete a-1 for good" in question and run.path.exists()
    shown = named(tab, tab.remove("a-1", "", {}))
    assert not run.path.exists() and "A student of your own" in shown["standing"] and not shown["sure"].visible
    with pytest.raises(gr.Error, match="no run 'a-1' any more"):
        tab.ask("a-1")


def test_a_stopped_run_offers_its_checkpoints(tab):
    run = written(tab.runs.root, "a-1", state="stopped", step=15)
    assert look(tab)["resume"]["value"] == "Begin again"
    for step in (5, 10, 15):
        run.checkpoint(step).mkdir(parents=True)
    shown = look(tab)
    assert shown["resume"]["value"] == "Resume" and shown["step"]["choices"] == ["last", "15", "10", "5"]


def begin(tab, preset: str = "2-minutes", **change) -> dict:
    """The Start button."""
    config = dataclasses.replace(PRESETS[preset].config, **{"threads": 1} | change)
    values = distill_fields.shown(config, list(tab.fields))
    return named(tab, tab.begin(Visitor, preset, "", "", {}, *values))


def test_a_run_is_begun_seen_at_once_and_stopped(tab):
    shown = begin(tab)
    assert shown["chosen"] == "koala-700m-1" and ">preparing<" in shown["standing"] and shown["timer"]["active"]
    with pytest.raises(gr.Error, match="Koala-700m-1 is still running"):
        begin(tab)
    shown = named(tab, tab.halt(Visitor, "koala-700m-1", "", {}))
    ended = ">stopped<" in shown["standing"]  # a process that had not begun goes at once
    assert (ended or ">stopping<" in shown["standing"]) and not shown["stop"]["interactive"]
    run, end = tab.runs.find("koala-700m-1"), time.monotonic() + 60
    while runs.state(run).state != "stopped":
        assert time.monotonic() < end
        time.sleep(0.1)
    assert ">stopped<" in look(tab, run.name)["standing"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"teacher": "koala-700m"}, "is not on this machine"),
        ({"teacher": "no-such"}, "Unknown model"),
        ({"student_spec": "0,2"}, "is no spec"),
        ({"student_spec": "0,2,12/-/12+12,2+2,0+0"}, "has 12 transformer blocks, tiny-sdxl only 10"),
        ({"features": ("CA",), "stages": ("DW-1",), "lf_at_ends": False}, "has no CA in DW-1"),
    ],
)
def test_what_cannot_run_is_said_before_a_process_is_begun(tab, change, said):
    with pytest.raises(gr.Error, match=said):
        begin(tab, **change)
    assert not list(tab.runs.root.iterdir())


def test_an_estimate_says_time_and_memory_or_what_would_fit(tab):
    found = {"predicted_peak_bytes": 3e9, "budget_bytes": 24_000_000_000, "fits": True, "remedies": []}
    found |= {"batch_that_fits": 1200, "seconds": 95.0}
    assert "About 1 min 35 s of training here. At its peak it takes 3.0 GB of 24.0 GB" in distill_panel.takes(found)
    tight = found | {"fits": False, "remedies": ["accumulation=8"], "seconds": None}
    assert "too much. It fits with accumulation=8." in distill_panel.takes(tight)
    *_, said = tab.forecast("2-minutes", *distill_fields.shown(dataclasses.replace(QUICK, threads=1), list(tab.fields)))
    assert re.search(r"About .* of training here\. At its peak it takes \d\.\d GB of", said), said
    with pytest.raises(gr.Error, match="Unknown feature 'SB'"):
        values = dict(zip(tab.fields, distill_fields.shown(QUICK, list(tab.fields)), strict=True)) | {
            "features": ["SB"]
        }
        list(tab.forecast("2-minutes", *values.values()))


# --- students as models


def test_a_trained_student_is_a_model_and_an_untrained_cut_is_not(session, tmp_path):
    run = written(tmp_path, "a-1")
    found = Runs(session, tmp_path)
    shutil.copytree(EMBEDDED / "tiny-koala-700m", run.student)
    assert found.all()[0].model is None
    run.checkpoint(20).mkdir(parents=True)
    session.before_choosing.append(found.all)
    assert ("a-1 (distilled)", "distilled-a-1") in session.choices()  # wherever models are chosen
    card = session.card("distilled-a-1")
    assert (card.teacher, card.steps, card.guidance, card.width) == ("tiny-sdxl", 25, 5.0, 256)
    found.delete("a-1")
    with pytest.raises(RequestError, match="unknown model"):
        session.card("distilled-a-1")


def test_a_student_that_learned_more_is_loaded_anew(session, tmp_path):
    """Symptom: Compare went on drawing with the weights of the first checkpoint."""
    run = with_student(written(tmp_path, "a-1"))
    found = Runs(session, tmp_path)
    found.all()
    session.start()
    old = session.model("distilled-a-1")
    weights = run.student / "unet" / "diffusion_pytorch_model.safetensors"
    os.utime(weights, (time.time() + 5, time.time() + 5))
    found.all()
    assert session.model("distilled-a-1") is not old
    while not session.settled:  # a process must not end in the middle of loading
        time.sleep(0.05)


def test_a_run_whose_student_draws_is_not_deleted(session, tmp_path):
    run = with_student(written(tmp_path, "a-1"))
    found = Runs(session, tmp_path)
    found.all()
    with session.using("distilled-a-1"), pytest.raises(RequestError, match="drawing or being loaded"):
        found.delete("a-1")
    assert run.path.exists()


# --- where strangers come


def test_strangers_choose_among_short_presets_and_few_settings(public, tmp_path, monkeypatch):
    monkeypatch.setenv("KOALA_RUNS", str(tmp_path))
    with gr.Blocks():
        tab = Distill(public)
    assert tuple(sorted(tab.fields)) == tuple(sorted(distill_fields.PUBLIC))
    assert [p.name for p in tab.runs.presets] == ["2-minutes", "10-minutes"]
    for refused in ("koala", "no-such", None):
        with pytest.raises(gr.Error, match="Choose one of"):
            tab.begin(Visitor, refused, "", "", {}, *distill_fields.shown(QUICK, list(tab.fields)))
    written(tab.runs.root, "a-1")
    shown = look(tab)
    assert shown["log"] == "" and str(tmp_path) not in "".join(v for v in shown.values() if isinstance(v, str))
    assert not shown["ask_delete"]["visible"]


def test_a_strangers_run_is_short_alone_and_his_to_stop(public, tmp_path):
    found = Runs(public, tmp_path)
    name = found.start(dataclasses.replace(QUICK, threads=1), "one")
    try:
        assert found.find(name).config().time_limit == PUBLIC_MINUTES
        assert PRESETS["10-minutes"].config.num_steps <= PUBLIC_STEPS
        with pytest.raises(RequestError, match="still running"):
            found.start(QUICK, "two")
        with pytest.raises(RequestError, match="somebody else"):
            found.stop(name, "two")
        for forbidden in (found.delete, found.resume):
            with pytest.raises(RequestError, match="your own machine"):
                forbidden(name)
    finally:
        found.stop(name, "one")
        while found.all()[0].alive:
            time.sleep(0.1)


def test_a_stranger_names_no_folder_of_this_machine(public, tmp_path):
    with pytest.raises(RequestError, match="unknown model"):
        Runs(public, tmp_path).start(dataclasses.replace(QUICK, teacher=str(EMBEDDED / "tiny-sdxl")), "one")


def test_a_public_app_keeps_the_newest_runs(public, tmp_path):
    for k in range(PUBLIC_KEPT + 2):
        os.utime(written(tmp_path, f"old-{k}").path / "config.json", (k, k))
    found = Runs(public, tmp_path)
    name = found.start(dataclasses.replace(QUICK, threads=1), "one")
    assert [s.name for s in found.all()] == [name, *(f"old-{k}" for k in range(PUBLIC_KEPT + 1, 2, -1))]
    found.stop(name, "one")
    while found.all()[0].alive:
        time.sleep(0.1)
