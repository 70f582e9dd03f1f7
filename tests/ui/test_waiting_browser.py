"""Pages that wait, in a real browser: each says how many are before it, and Esc leaves the line."""

import re

import pytest
from playwright.sync_api import Page, expect

from tests.ui.conftest import Server

pytestmark = pytest.mark.browser

WAITS = re.compile(r"^Waiting: 1 before you")


def steps(page: Page, prefix: str, number: int) -> None:
    for slot in "ab":
        field = page.locator(f"#{prefix}-steps-{slot} input[type=number]")
        field.fill(str(number))
        field.blur()


@pytest.mark.slow
def test_the_first_click_is_answered_at_once_and_esc_stops_it(open_tab, serve):
    """Symptom: while the models loaded, nothing changed for seconds."""
    server: Server = serve()
    with open_tab(server, "Compare") as page:
        status = page.locator(".k-stage .k-status")
        page.locator("#k-prompt textarea").press("Control+Enter")
        expect(page.locator(".k-stage")).to_have_attribute("data-phase", "running", timeout=3000)
        page.keyboard.press("Escape")
        expect(status).to_have_text(re.compile("^Stopped"), timeout=3000)
        page.get_by_role("tab", name="Attention").click()
        page.locator("#kv-prompt textarea").press("Control+Enter")
        page.locator(".kv[data-phase=running]").wait_for(timeout=3000)
        page.keyboard.press("Escape")
        expect(page.locator(".kv-status")).to_have_text("Stopped.", timeout=3000)


@pytest.mark.slow
def test_a_page_behind_another_ones_run_says_so_and_esc_leaves_the_line(open_tab, app):
    """Symptom: Generate gave no response while another page drew."""
    with open_tab(app, "Compare") as first, open_tab(app, "Compare") as second:
        shown, stage = second.locator(".k-stage .k-status"), second.locator(".k-stage")
        steps(first, "k", 150)
        steps(second, "k", 1)
        first.get_by_role("button", name="Generate").click()
        expect(first.locator(".k-stage .k-status")).to_contain_text("of 150", timeout=90_000)  # the models load first
        second.get_by_role("button", name="Generate").click()
        expect(shown).to_have_text(WAITS, timeout=5000)
        second.keyboard.press("Escape")
        expect(shown).to_have_text("Stopped.", timeout=3000)
        second.get_by_role("tab", name="Attention").click()
        steps(second, "kv", 1)
        second.get_by_role("button", name="Draw and record").click()
        expect(second.locator(".kv-status")).to_have_text(WAITS, timeout=5000)
        second.get_by_role("tab", name="Compare").click()
        second.get_by_role("button", name="Generate").click()
        expect(shown).to_have_text(re.compile("^Waiting: 2 before you"), timeout=5000)
        first.keyboard.press("Escape")
        expect(first.locator(".k-stage .k-status")).to_have_text(re.compile("^Stopped at Tiny"), timeout=5000)
        second.locator(".k-stage[data-phase=done]").wait_for()
        second.locator(".kv[data-phase=done]").wait_for(state="attached")
        expect(stage).to_have_attribute("data-phase", "done")
