"""SECURITY.md: every promise names the test that holds it, and each of those tests is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "SECURITY.md").read_text()
PROMISES = re.findall(r"^- \*\*.*?(?=^- \*\*|^\S|\Z)", TEXT.partition("## What is promised")[2], re.M | re.S)


def test_there_are_promises():
    assert len(PROMISES) == len(re.findall(r"^- \*\*", TEXT, re.M)) > 8


@pytest.mark.parametrize("promise", PROMISES, ids=lambda p: re.match(r"- \*\*(.{1,40})", p, re.S)[1])
def test_a_promise_names_tests_that_are_there(promise):
    named = re.findall(r"`(tests/[^`]*)`", promise)
    assert named, promise
    for name in named:
        assert re.search(r"^(@pytest.mark|def test_)", (ROOT / name).read_text(), re.M), name
