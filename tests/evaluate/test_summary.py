"""What people read at a terminal says what the JSON says."""

import json

import pytest

from koala.evaluate.reports import lines
from koala.models.cards import EMBEDDED


def test_shapes_says_the_shipped_reports_figures():
    report = json.loads((EMBEDDED / "scores" / "tiny-koala-700m.json").read_text())
    first, *_ = shown = lines(report)
    assert [line.partition(":")[0] for line in shown] == ["one_object", "two_objects", "held_out"]
    assert f"{100 * report['scores']['one_object']['all']['rate']:.1f} %" in first
    assert "binding" in first


def test_the_judges_own_report():
    report = json.loads((EMBEDDED / "scores" / "judge.json").read_text())
    assert f"{100 * report['judge']['round_trip']['perfect']:.2f} % after the VAE" in lines(report)[0]


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (
            {
                "suite": "agreement",
                "scores": {
                    "output": {"relative_error": 0.1, "cosine": 0.99},
                    "self_attention": {
                        "relative_error": 0.2,
                        "cosine": 0.9,
                        "layers": 21,
                        "by_stage": {"DW-2": {"relative_error": 0.3, "cosine": 0.8, "layers": 2}},
                    },
                },
            },
            [
                "output: relative error 0.1000, cosine 0.9900",
                "self-attention: relative error 0.2000, cosine 0.9000, 21 layers",
                "DW-2: relative error 0.3000, cosine 0.8000, 2 layers",
            ],
        ),
        (
            {
                "suite": "clip",
                "scores": {
                    "clip_score": {"mean": 31.0, "interval": [30.0, 32.0]},
                    "cmmd": {"minimum_variance": 0.5, "unbiased": 0.4},
                },
                "reference": {"source": "d", "pictures": 3, "broken": ["a.png"]},
            },
            [
                "clip_score: 31.000 (30.000 to 32.000)",
                "cmmd: 0.500, unbiased 0.400",
                "1 unreadable file in d: a.png",
            ],
        ),
        (
            {
                "suite": "steps",
                "steps": [1, 4],
                "panels": {"HPSv2.1": ["hpsv2.1"]},
                "models": [
                    {
                        "model": "m",
                        "points": [{"scores": {"hpsv2.1": {"mean": x, "interval": [x, x]}}} for x in (20.0, 25.5)],
                    }
                ],
            },
            ["HPSv2.1, at 1, 4 steps:", "  m: 20.000, 25.500"],
        ),
        (
            {"suite": "prompts", "folder": "d", "drawn": 3, "found": 1},
            ["d: 3 pictures drawn, 1 were there already"],
        ),
    ],
    ids=["agreement", "clip", "steps", "prompts"],
)
def test_one_line_per_figure(report, expected):
    assert lines(report) == expected
