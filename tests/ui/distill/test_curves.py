"""What a run wrote, read while it grows, and drawn."""

import dataclasses
import re

from koala.ui.distill import curves as distill_curves
from koala.ui.distill.curves import Follower, Metrics, thinned
from koala.ui.distill.runs import teacher_scores
from tests.ui.distill.conftest import QUICK, written


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
    thin = thinned(curve)
    assert len(thin) <= 240 and thin[-1] == curve[-1]
    assert all(abs(value - 0.5) < 0.02 for _, value in thin[:-2])
    assert thinned(curve[:100]) == curve[:100]


def test_every_term_has_its_figure_and_two_runs_share_one(tmp_path):
    one, two = (("one <b>", Follower(written(tmp_path, "a-1")).read()), ("two", Metrics()))
    html = distill_curves.terms([one], {})
    assert re.findall("<strong>(.*?)</strong>", html) == ["Loss", "Task", "Output", "SA", "LF"]
    assert html.count("<polyline") == 5 and "<b>" not in html
    two[1].train.extend({"step": s, "loss": 9.0, "SA": float("nan")} for s in (1, 30))
    both = distill_curves.terms([one, two], {})
    assert both.count("<polyline") == 6 and both.count("chart-line kd-b") == 1
    assert "nan" not in both


def test_a_figures_lines_stay_within_it():
    for values in ([5.0], [0.0, 0.0], [1e-5, 3.0], [-1.0, 2.0], [1e-30, 1e30]):
        line = distill_curves.Line(name="x", curve=list(enumerate(values)))
        *_, html = distill_curves.figure("T", "w", [line])
        heights = [float(b) for _, b in re.findall(r"([\d.-]+),([\d.-]+)", html.split("polyline")[-1])]
        assert all(0 <= b <= distill_curves.FRAME.height for b in heights)
        assert html.count('class="chart-grid"') <= 6


def test_the_score_is_shown_with_the_teachers():
    metrics = Metrics(score=[{"step": 0, "one_object": 0.0}, {"step": 10, "one_object": 0.5}])
    teacher = teacher_scores(QUICK)
    html = distill_curves.terms([("a", metrics)], teacher)
    assert "50 %" in html and f"teacher {100 * teacher['one_object']:.0f} %" in html
    assert teacher["one_object"] > 0.5 and teacher_scores(dataclasses.replace(QUICK, teacher="sdxl-base")) == {}
