"""The list of mutants applies to the code as it is, and the report is of this list."""

import dataclasses
import json
import subprocess
from pathlib import Path

import pytest

from recipes.measure import mutants
from recipes.measure.mutants import DoesNotApply, Mutant, broken

ROOT = Path(__file__).parents[2]
SOURCE = '''class Sum:
    """Ü: a byte more than a letter."""

    def of(self, a, b):
        return a + b  # ü


def of(a, b):
    return a - b
'''
PLUS = Mutant(name="plus", module="sums", function="Sum.of", right="a + b", wrong="a * b", tests=("test_sums.py",))


@pytest.mark.parametrize("mutant", mutants.mutants(), ids=lambda m: m.name)
def test_every_mutant_applies(mutant):
    source = (ROOT / mutants.source_file(mutant)).read_text(encoding="utf-8")
    assert broken(source, mutant) != source
    assert all((ROOT / test).exists() for test in mutant.tests)


def test_an_expression_is_found_by_function_and_not_by_line():
    assert broken(SOURCE, PLUS) == SOURCE.replace("a + b  # ü", "(a * b)  # ü")
    moved = "\n\nx = 1\n" + SOURCE
    assert broken(moved, PLUS) == moved.replace("a + b  # ü", "(a * b)  # ü")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"right": "a - b"}, "is 0 times in sums.Sum.of"),
        ({"right": "a"}, "is 1 times|is 2 times"),
        ({"function": "Sum.off"}, "has no Sum.off"),
    ],
)
def test_one_that_no_longer_applies_is_an_error(changes, words):
    source = SOURCE.replace("a + b", "a + b + a")
    with pytest.raises(DoesNotApply, match=words):
        broken(source, dataclasses.replace(PLUS, **changes))


@pytest.mark.slow
def test_a_mutant_is_caught_or_survives_by_what_its_tests_say(tmp_path, monkeypatch):
    (tmp_path / "sums.py").write_text(SOURCE)
    (tmp_path / "test_sums.py").write_text("from sums import Sum\n\ndef test_two():\n    assert Sum().of(2, 2) == 4\n")
    (tmp_path / "test_more.py").write_text(
        "from sums import Sum\n\ndef test_three():\n    assert Sum().of(1, 2) == 3\n"
    )
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    weak = mutants.tried(PLUS, tmp_path)
    assert not weak["caught"]  # 2 + 2 = 2 * 2
    strong = mutants.tried(dataclasses.replace(PLUS, tests=("test_sums.py", "test_more.py")), tmp_path)
    assert strong["caught"] and strong["by"] == "test_more.py::test_three"
    assert (tmp_path / "sums.py").read_text() == SOURCE
    with pytest.raises(RuntimeError, match="pytest ended with 4"):
        mutants.tried(dataclasses.replace(PLUS, tests=("test_none.py",)), tmp_path)


def test_the_report_is_of_this_list_and_at_least_95_percent_are_caught():
    report = json.loads((ROOT / "docs" / "measurements" / "mutants.json").read_text())
    listed = {m.name: m for m in mutants.mutants()}
    assert report["mutants"].keys() == listed.keys()
    for name, result in report["mutants"].items():
        assert (result["right"], result["wrong"]) == (listed[name].right, listed[name].wrong), name
        assert result["caught"] or result["why"], f"{name} survives, and nobody says why"
    caught = sum(result["caught"] for result in report["mutants"].values())
    assert (report["caught"], report["tried"]) == (caught, len(listed))
    assert caught >= mutants.LEAST * len(listed)
