"""The Distill tab in a real browser: watch a run, leave and come back, compare, delete; and, slow, train a student."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from koala.distill.run import manager as runs
from tests.ui.conftest import faults
from tests.ui.distill.conftest import Trainer

pytestmark = [pytest.mark.browser, pytest.mark.long]

DESKTOP, PHONE = {"width": 1280, "height": 1000}, {"width": 390, "height": 844}


@pytest.fixture
def root(tmp_path) -> Path:
    """Where the app that `serve` starts has its runs."""
    return tmp_path / "runs"


@pytest.fixture
def visit(open_tab, serve):
    """An app of the test's own, and its tab."""

    @contextmanager
    def visited(viewport=DESKTOP, **settings) -> Iterator[Page]:
        with open_tab(serve(), "Distill", viewport, **settings) as page:
            tab(page)
            yield page

    return visited


def tab(page: Page) -> None:
    page.get_by_role("tab", name="Distill").click()
    page.locator(".kd-run, .kd-empty").first.wait_for()


def standing(page: Page):
    return page.locator("#kd-standing")


def test_a_run_is_watched_left_and_found_again(visit, root):
    trainer = Trainer(root, "first-1", step=40)
    with visit() as page:
        expect(standing(page)).to_contain_text("40 of 200")
        expect(standing(page)).to_contain_text("0.5 steps per second")
        expect(standing(page)).to_contain_text("5 min 20 s")
        titles = page.locator("#kd-curves figcaption strong")
        expect(titles).to_have_text(["Loss", "Task", "Output", "SA", "LF"])
        for stem, colour in (("teacher", "red"), ("before", "grey")):
            trainer.draw(stem, colour)
        trainer.step(80)
        trainer.draw("step-80", "pink")
        trainer.validate(0.25)
        trainer.keep()
        expect(standing(page)).to_contain_text("80 of 200")  # nobody pressed anything
        expect(standing(page)).to_contain_text("25 %")
        assert titles.first.inner_text() == "Shapes score, one object"
        captions = page.locator(".kd-grid li").first.locator("figcaption")
        expect(captions).to_have_text(["teacher", "before training", "step 80"])
        page.get_by_role("tab", name="Compare").click()
        trainer.step(120)
        tab(page)
        expect(standing(page)).to_contain_text("120 of 200")
        page.reload()
        tab(page)
        expect(standing(page)).to_contain_text("120 of 200")
        trainer.step(200, state="done", message="200 steps; the student is in student/")
        expect(page.locator(".kd-run")).to_have_attribute("data-state", "done")
        expect(page.locator("#kd-stop")).to_have_count(0)
        page.get_by_role("link", name="compare it with its teacher").click()
        expect(page.get_by_role("combobox", name="Second model")).to_have_value("first-1 (distilled)")


@pytest.mark.slow
def test_a_run_is_followed_however_fast_the_tabs_are_turned(visit, root):
    """Symptom: the answer of the tab before came last, and the page stood still."""
    trainer = Trainer(root, "first-1", step=40)
    with visit() as page:
        for _ in range(5):
            page.get_by_role("tab", name="Compare").click()
            tab(page)
        for step in (80, 120):
            trainer.step(step)
            expect(standing(page)).to_contain_text(f"{step} of 200")


@pytest.mark.slow
@pytest.mark.parametrize("viewport", [pytest.param(DESKTOP, marks=pytest.mark.slow), PHONE], ids=["desktop", "phone"])
def test_runs_are_compared_and_one_is_deleted_after_a_question(visit, root, viewport):
    for k, name in enumerate(("first-1", "second-1")):
        trainer = Trainer(root, name, state="done", step=60)
        trainer.validate(0.3)
        trainer.keep()
        os.utime(trainer.run.path / "config.json", (1000 + k, 1000 + k))
    with visit(viewport) as page:
        expect(page.locator(".kd-run h3")).to_have_text("second-1")
        page.get_by_role("button", name="Compare with first-1").click()
        expect(page.locator("#kd-curves .chart-line.kd-b").first).to_be_attached()
        expect(page.locator("#kd-curves .kd-keys").first).to_contain_text("second-1first-1")
        assert faults(page) == []
        page.get_by_role("button", name="first-1", exact=True).click()
        expect(page.locator(".kd-run h3")).to_have_text("first-1")
        page.get_by_role("button", name="Delete …").click()
        expect(page.locator(".kd-sure")).to_contain_text("Delete first-1 for good")
        page.get_by_role("button", name="Keep it").click()
        expect(page.locator(".kd-sure")).to_have_count(0)
        assert (root / "first-1").is_dir()
        page.get_by_role("button", name="Delete …").click()
        page.get_by_role("button", name="Delete it").click()
        expect(page.locator(".kd-run h3")).to_have_text("second-1")
        assert not (root / "first-1").exists() and (root / "second-1").is_dir()


@pytest.mark.slow
def test_a_setting_that_cannot_work_is_said_under_no_run(visit, root):
    with visit() as page:
        page.get_by_role("button", name="What is distilled").click()
        features = page.get_by_role("combobox", name="Features")
        features.fill("SB")
        features.press("Enter")
        page.get_by_role("button", name="Start").click()
        expect(page.get_by_test_id("toast-body")).to_contain_text("the features are SA, CA, FFN, Res, LF")
        assert not root.exists()


@pytest.mark.slow
def test_a_student_is_trained_stopped_resumed_and_drawn_with(visit, root):
    with visit() as page:
        page.get_by_role("button", name="What is distilled").click()
        page.get_by_role("button", name="All other settings").click()
        settings = {"Number of steps": 30, "Number of pictures": 24, "Resolution": 128, "Batch size": 2}
        settings |= {
            "Checkpoint every": 5,
            "Validate every": 15,
            "Validation pictures": 4,
            "Log every": 1,
            "Threads": 1,
        }
        for label, value in settings.items():
            field = page.locator(".kd-fields").get_by_label(label, exact=True)
            field.fill(str(value))
            field.blur()
        page.locator(".kd-fields").get_by_label("Validation prompts").fill("a red circle")
        page.get_by_role("button", name="Start").click()
        run = page.locator(".kd-run")
        expect(run).to_have_attribute("data-state", "preparing")
        expect(run).to_have_attribute("data-state", "running", timeout=300_000)
        page.get_by_role("button", name="Stop").click()
        expect(run).to_have_attribute("data-state", re.compile("stopping|stopped"))
        expect(run).to_have_attribute("data-state", "stopped", timeout=120_000)
        page.get_by_role("button", name="Resume").click()
        expect(run).to_have_attribute("data-state", "done", timeout=300_000)
        expect(page.locator(".kd-grid figcaption")).to_have_text(["teacher", "before training", "step 30"])
        run = runs.list_runs(root)[0]
        steps = [e["step"] for e in run.metrics() if e["kind"] == "train"]
        assert steps == list(range(1, 31))
        page.get_by_role("link", name="compare it with its teacher").click()
        for which in ("first", "second"):
            field = page.get_by_role("spinbutton", name=f"Steps of the {which} model")
            field.fill("2")
            field.blur()
        page.get_by_role("button", name="Generate").click()
        page.locator(".k-stage[data-phase=done]").wait_for()
        assert page.locator(".k-shot img").nth(1).get_attribute("alt").endswith("koala-700m-1 (distilled)")
