"""The line under a prompt: what is read of it, cheaply, before and after the libraries are there, for strangers too."""

import re
import time

import pytest
from playwright.sync_api import expect

from koala.request import MAX_PROMPT
from koala.ui.session import Session
from koala.ui.token_counter import TokenCounter

PAIR = ("tiny-sdxl", "tiny-koala-700m")
LONG = "a picture " * 36 + "of a red circle left of a blue square"


@pytest.fixture(scope="module")
def session(library):
    result = Session(library=library, local=False).start()
    result.loader.library()
    return result


@pytest.fixture
def count(session):
    return TokenCounter(session).count


def test_before_the_libraries_are_there_nothing_is_counted_and_nobody_waits():
    begun = time.perf_counter()
    counter = TokenCounter(Session())  # which has not been started
    assert counter.count(LONG, *PAIR) == ""
    line, timer = counter.first(LONG, *PAIR)
    assert line == "" and timer.active
    assert time.perf_counter() - begun < 1


def test_the_line_counts_and_names_what_is_not_read(count, session):
    assert count("a red circle", *PAIR) == '<p class="k-tokens">3 of 75 tokens</p>'
    line = count(LONG, *PAIR)
    assert "81 of 75 tokens. Not read: <q" in line and line.endswith("left of a blue square</q></p>")
    line, timer = TokenCounter(session).first("a red circle", *PAIR)
    assert "3 of 75" in line and not timer.active


@pytest.mark.parametrize("text", ["", "   \n", None, 7, ["a"], {"a": 1}])
def test_nothing_is_said_of_nothing(count, text):
    assert count(text, *PAIR) == ""


@pytest.mark.parametrize("model", [None, "", "nobody/knows-this", "sdxl-base", ["tiny-sdxl"], {}, "/etc"])
def test_models_that_are_not_here_or_that_nobody_may_name_are_left_out(count, model):
    assert count("a red circle", model, PAIR[1]) == '<p class="k-tokens">3 of 75 tokens</p>'
    assert count("a red circle", model, model) == ""


def test_what_is_far_too_long_or_no_text_is_refused_without_being_counted(count):
    assert f"shorten it to {MAX_PROMPT:,}" in count("a" * (MAX_PROMPT + 1), *PAIR)
    assert "half a character" in count("a \ud83d circle", *PAIR)
    begun = time.thread_time()
    for _ in range(20):
        count("🐨" * MAX_PROMPT, *PAIR)
    assert (time.thread_time() - begun) / 20 < 0.1


def test_a_prompt_is_text_in_the_line_too(count):
    line = count(LONG + " <script>alert(1)</script> ${7*7}", *PAIR)
    assert "<script>" not in line and "&lt;script&gt;" in line


@pytest.mark.browser
def test_the_line_is_under_the_prompt_in_both_tabs_and_follows_the_typing(open_tab, app):
    with open_tab(app, "Compare") as page:
        for field in ("#k-prompt", "#kv-prompt"):
            if field == "#kv-prompt":
                page.get_by_role("tab", name="Attention").click()
            text, line = page.locator(f"{field} textarea"), page.locator(".k-tokens:visible").first
            text.fill(LONG)
            expect(line).to_have_text(re.compile("81 of 75 tokens. Not read: .*left of a blue square$"), timeout=30_000)
            box, above = line.bounding_box(), text.bounding_box()
            assert 0 <= box["y"] - above["y"] - above["height"] < 40
            text.fill("a red circle")
            expect(line).to_have_text("3 of 75 tokens")
