"""docs/reliability.md is the page of its report, whole, and names tests that are there."""

import json
from pathlib import Path

from recipes.measure.reliability.__main__ import ALONE, ON_A_SERVER
from recipes.measure.reliability.running import TESTS, markdown

ROOT = Path(__file__).parents[2]
REPORT = json.loads((ROOT / "docs" / "measurements" / "reliability.json").read_text())


def test_the_page_says_what_the_report_says():
    assert (ROOT / "docs" / "reliability.md").read_text(encoding="utf-8") == markdown(REPORT)


def test_the_report_has_every_attack_with_its_circumstances():
    assert REPORT["attacks"].keys() == ON_A_SERVER.keys() | ALONE.keys() == TESTS.keys()
    for result in REPORT["attacks"].values():
        assert result["tried"] > 0 and result["command"] and result["date"] and result["device"] and result["weights"]


def test_an_attack_names_the_test_that_runs_it_by_default():
    assert [name for name in TESTS.values() if not (ROOT / name).is_file()] == []


def test_what_failed_is_on_the_page():
    failed = {name: dict(result) for name, result in REPORT["attacks"].items()}
    failed["judge"] |= {"survived": 0, "failures": ["forty circles took 9 s"]}
    page = markdown({"attacks": failed})
    assert "- judge: forty circles took 9 s" in page and "Nothing failed." not in page
