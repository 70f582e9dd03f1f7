"""Quality over the number of steps: report and plot."""

import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from koala.evaluate import shapes, steps
from koala.evaluate.settings import Settings
from koala.evaluate.steps import figure
from koala.models.library import Library

SVG = "{http://www.w3.org/2000/svg}"


def curve(*rates: float) -> list[dict]:
    def scores(rate: float) -> dict:
        one = {"rate": rate, "interval": [rate - 0.1, rate + 0.1], "count": 10}
        return {"one_object": {"all": one}, "two_objects": {"all": one}}

    return [{"steps": n, "scores": scores(rate)} for n, rate in zip((1, 4, 16), rates, strict=True)]


REPORT = {
    "suite": "steps",
    "metric": "shapes",
    "num_prompts": 10,
    "steps": [1, 4, 16],
    "panels": {"one object": ["one_object", "all"], "two objects": ["two_objects", "all"]},
    "models": [
        {"model": "tiny-sdxl", "points": curve(0.2, 0.6, 0.8)},
        {"model": "/a/folder/student <1>", "points": curve(0.1, 0.5, 0.5)},
    ],
}


def test_every_model_is_scored_at_every_number_of_steps_as_the_shapes_suite_does():
    library = Library("cpu")
    models = library.get_all(["tiny-koala-700m"])
    lines = []
    report = steps.evaluate(models, Settings(steps=(2, 1, 2), num_prompts=1), library, lines.append)
    assert report["steps"] == [1, 2]
    (model,) = report["models"]
    assert [p["steps"] for p in model["points"]] == [1, 2]
    assert model["points"][1]["scores"] == shapes.evaluate(models[0], count=1, steps=2)["scores"]
    assert lines[-1] == "tiny-koala-700m, held_out: 1 of 1"
    ElementTree.fromstring(figure(json.loads(json.dumps(report))))


def test_the_plot_puts_every_point_where_its_number_is():
    svg = ElementTree.fromstring(figure(REPORT))
    panels = [g for g in svg.findall(f"{SVG}g") if g.findall(f"{SVG}polyline")]
    assert len(panels) == 2
    for panel in panels:
        first, second = panel.findall(f"{SVG}polyline")
        points = [tuple(map(float, p.split(","))) for p in first.get("points").split()]
        across = [x for x, _ in points]
        assert across[1] - across[0] == pytest.approx(across[2] - across[1], abs=0.2)  # 1, 4, 16 on a logarithmic axis
        labels = {t.text: float(t.get("y")) - 4 for t in panel.findall(f"{SVG}text") if t.text.endswith("%")}
        zero, hundred = labels["0 %"], labels["100 %"]
        heights = [(zero - y) / (zero - hundred) for _, y in points]
        assert heights == pytest.approx([0.2, 0.6, 0.8], abs=0.01)
        assert first.get("stroke") != second.get("stroke")
        assert first.get("stroke-dasharray") != second.get("stroke-dasharray")  # told apart without colour too
        tips = [c.find(f"{SVG}title").text for c in panel.findall(f"{SVG}circle")]
        assert tips[1] == "tiny-sdxl, 4 steps: 60.0 % (50.0 to 70.0)"
    assert "student &lt;1>" in figure(REPORT) or "student &lt;1&gt;" in figure(REPORT)


def test_numbers_without_an_interval_get_round_ticks():
    points = [{"steps": n, "scores": {"cmmd": {"unbiased": v}}} for n, v in ((1, 1.42), (8, 0.31))]
    report = {
        "metric": "clip",
        "num_prompts": 5,
        "steps": [1, 8],
        "panels": {"CMMD": ["cmmd", "unbiased"]},
        "models": [{"model": "koala-lightning-700m", "points": points}],
    }
    shown = re.findall(r'text-anchor="end">([^<]+)<', figure(report))
    assert shown == ["0.0", "0.5", "1.0", "1.5"]
