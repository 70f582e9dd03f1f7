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
                "metric": "hpsv2",
                "num_prompts": 5,
                "steps": [1, 4],
                "panels": {"HPSv2.1": ["hpsv2.1"]},
                "models": [
                    {
                        "model": "m",
                        "teacher": None,
                        "parameters": 1_234_567_890,
                        "guidance": 0.0,
                        "points": [
                            {
                                "steps": n,
                                "unet_calls": n,
                                "picture_ms": 100.0 * n,
                                "scores": {"hpsv2.1": {"mean": x, "interval": [x - y, x]}},
                            }
                            for n, x, y in ((1, 20.0, 0), (4, 25.5, 1))
                        ],
                    }
                ],
            },
            [
                "HPSv2.1:\n\n| model | teacher | guidance | 1 step | 4 steps |\n| :-- | :-- | :-- | --: | --: |\n"
                "| m | - | none | 20.000 | 25.500 (24.500 to 25.500) |\n\nWhat it costs:\n\n"
                "| model | teacher | guidance | steps | parameters | U-Net calls | s per picture | HPSv2.1 |\n"
                "| :-- | :-- | :-- | --: | --: | --: | --: | --: |\n"
                "| m | - | none | 1 | 1,234.6 M | 1 | 0.1 | 20.000 |\n"
                "| m | - | none | 4 | 1,234.6 M | 4 | 0.4 | 25.500 (24.500 to 25.500) |\n\n"
                "5 prompts per point; in brackets the 95 % interval. A picture's time is the median of 3 runs, without "
                "the warm-up."
            ],
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
