"""Quality over the number of steps: report and plot."""

import dataclasses
import json
import re
import xml.etree.ElementTree as ElementTree

import pytest

from koala.errors import UserError
from koala.evaluate import shapes, steps
from koala.evaluate.settings import Settings, check
from koala.evaluate.steps_figure import figure, labels
from koala.evaluate.steps_tables import markdown
from koala.models.library import Library

SVG = "{http://www.w3.org/2000/svg}"


def curve(*rates: float, calls: int = 2) -> dict:
    def scores(rate: float) -> dict:
        one = {"rate": rate, "interval": [rate - 0.1, rate + 0.1], "count": 10}
        return {"one_object": {"all": one}, "two_objects": {"all": one}}

    points = [
        {"steps": n, "unet_calls": calls * n, "picture_ms": 250.0 * calls * n, "scores": scores(rate)}
        for n, rate in zip((1, 4, 16), rates, strict=True)
    ]
    return {"points": points}


REPORT = {
    "suite": "steps",
    "metric": "shapes",
    "num_prompts": 10,
    "steps": [1, 4, 16],
    "panels": {"one object": ["one_object", "all"], "two objects": ["two_objects", "all"]},
    "models": [
        {"model": "tiny-sdxl", "teacher": None, "parameters": 6_442_948, "guidance": 2.0} | curve(0.2, 0.6, 0.8),
        {"model": "/a/folder/student <1>", "teacher": "tiny-sdxl", "parameters": 1_967_636, "guidance": 0.0}
        | curve(0.1, 0.5, 0.5, calls=1),
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
    suites = ("one_object", "two_objects", "held_out")
    told = [f"tiny-koala-700m, {n}, {suite}: 1 of 1" for n in ("1 step", "2 steps") for suite in suites]
    assert lines[:-1] == told  # at which number of steps, too
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
        "models": [{"model": "koala-lightning-700m", "guidance": 3.5, "points": points}],
    }
    shown = re.findall(r'text-anchor="end">([^<]+)<', figure(report))
    assert shown == ["0.0", "0.5", "1.0", "1.5"]


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]


def test_the_tables_have_a_row_per_model_and_a_row_per_point():
    text = markdown(REPORT | {"device": "a lathe"})
    assert text.startswith("one object:\n\n| model | teacher | guidance | 1 step | 4 steps | 16 steps |\n")
    assert text.endswith(
        "10 prompts per point; in brackets the 95 % interval. A picture's time is the median of 3 runs on a lathe, "
        "without the warm-up."
    )
    cells = rows(text)
    assert cells[2] == [
        "tiny-sdxl",
        "-",
        "2",
        "20.0 % (10.0 to 30.0)",
        "60.0 % (50.0 to 70.0)",
        "80.0 % (70.0 to 90.0)",
    ]
    assert cells[3][:4] == ["student <1>", "tiny-sdxl", "none", "10.0 % (0.0 to 20.0)"]
    head = ["model", "teacher", "guidance", "steps", "parameters", "U-Net calls", "s per picture"]
    start = cells.index([*head, "one object", "two objects"])
    assert len(cells) == start + 2 + 6
    assert cells[start + 3][:7] == ["tiny-sdxl", "-", "2", "4", "6.4 M", "8", "2"]
    assert cells[start + 6] == [
        "student <1>",
        "tiny-sdxl",
        "none",
        "4",
        "2.0 M",
        "4",
        "1",
        *["50.0 % (40.0 to 60.0)"] * 2,
    ]


def test_curves_of_one_model_or_of_one_folder_name_are_told_apart():
    def named(*models: tuple[str, float]) -> list[str]:
        return labels({"models": [{"model": model, "guidance": guidance} for model, guidance in models]})

    assert named(("tiny-sdxl", 2.0), ("a/koala", 0.0)) == ["tiny-sdxl", "koala"]
    assert named(("x", 2.0), ("x", 1.0)) == ["x, guidance 2", "x, no guidance"]
    runs = ("/runs/base/student", 2.0), ("/runs/base/student", 1.0), ("/runs/few/student", 0.0)
    assert named(*runs) == ["base/student, guidance 2", "base/student, no guidance", "few/student"]
    assert named(("a/student", 1.0), ("student/", 1.0)) == ["a/student", "student"]


@pytest.mark.slow
def test_every_model_with_guidance_is_scored_without_it_too():
    library = Library("cpu")
    student = library.get("tiny-koala-700m")
    models = [student, dataclasses.replace(student, card=dataclasses.replace(student.card, guidance=0.0))]
    settings = Settings(steps=(2,), num_prompts=1, also_unguided=True)
    report = steps.evaluate(models, settings, library, str)
    assert [one["guidance"] for one in report["models"]] == [2.0, 1.0, 0.0]
    points = [one["points"][0] for one in report["models"]]
    assert [point["unet_calls"] for point in points] == [4, 2, 2]
    for point, guidance in zip(points, (2.0, 1.0, 1.0), strict=True):
        assert point["scores"] == shapes.evaluate(student, count=1, steps=2, guidance=guidance)["scores"]
        assert point["picture_ms"] > 0
    assert [(one["parameters"], one["teacher"]) for one in report["models"]] == [(1_967_636, "tiny-sdxl")] * 3


def test_without_guidance_as_well_needs_guidance():
    settings = Settings(guidance=1.0, also_unguided=True)
    with pytest.raises(UserError, match="--guidance 1 means no guidance already; leave --also-unguided out"):
        check("steps", ["tiny-sdxl"], settings)
    check("steps", ["tiny-sdxl"], Settings(guidance=3.0, also_unguided=True))
