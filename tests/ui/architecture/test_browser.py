"""The Architecture tab in a real browser: look at a block, make a U-Net of one's own, cut it, draw with it."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page, expect

pytestmark = pytest.mark.browser

DESKTOP, PHONE = {"width": 1280, "height": 1000}, {"width": 390, "height": 844}
KOALA_700M, KOALA_1B, SDXL = "782,822,724", "1,161,184,324", "2,567,463,684"


@pytest.fixture
def visit(open_tab, app):
    """Opens the tab."""

    @contextmanager
    def visited(viewport=DESKTOP, **settings) -> Iterator[Page]:
        with open_tab(app, "Architecture", viewport, **settings) as page:
            expect(shown(page, "parameters")).to_have_text(KOALA_700M)
            yield page

    return visited


def shown(page: Page, name: str):
    return page.locator(f'[data-show="{name}"]').first


def facts(page: Page) -> str:
    return page.locator(".ka-detail").inner_text()


def block(page: Page, path: str):
    return page.locator(f'.ka-wide .ka-part[data-path="{path}"]')


def press(page: Page, slider: str, key: str, times: int) -> None:
    control = page.get_by_role("slider", name=f"Transformer blocks of {slider}")
    control.focus()
    for _ in range(times):
        control.press(key)


@pytest.mark.slow
def test_pointing_at_a_block_shows_its_numbers_and_its_source(visit):
    with visit() as page:
        assert "UP-1: transformer 2 of 3" in facts(page) and "saves 350.8 M parameters" in facts(page)
        block(page, "up_blocks.0.attentions.2").hover()
        assert "177.1 M of 350.8 M" in facts(page) and "up_blocks.0.attentions.2, its first 5 of 10" in facts(page)
        page.mouse.move(5, 5)
        assert "saves 350.8 M parameters" in facts(page)  # what was chosen is back
        block(page, "down_blocks.1.resnets.0").click()
        page.mouse.move(5, 5)
        assert "DW-2: residual block 1 of 2" in facts(page) and "4,096 (64 × 64)" in facts(page)
        for _ in range(2):  # the arrow keys follow the picture's way
            page.keyboard.press("ArrowRight")
        assert "DW-2: residual block 2 of 2" in facts(page) and "removed" in facts(page)
        assert re.search(
            "residual block 2 of 2, removed", block(page, "down_blocks.1.resnets.1").get_attribute("aria-label")
        )
        page.keyboard.press("End")
        assert "Last convolution" in facts(page)
        assert page.locator('.ka-wide .ka-part[tabindex="0"]').count() == 1  # one stop of the Tab key


@pytest.mark.slow
def test_sliders_lead_from_bk_sdxl_to_koala_with_exact_counts(visit):
    with visit() as page:
        kept = page.locator('.ka-wide [data-stage="DW-3"] [data-kept="true"]')
        page.get_by_role("radio", name="BK-SDXL").click()
        expect(shown(page, "parameters")).to_have_text("1,717,277,764")
        expect(kept).to_have_count(10)
        for stage in ("DW-3", "UP-1"):
            press(page, stage, "ArrowLeft", 4)
        expect(shown(page, "parameters")).to_have_text(KOALA_1B)
        expect(shown(page, "flops")).to_have_text("3.43 TFLOP")
        expect(page.get_by_role("radio", name="KOALA-1B")).to_have_attribute("aria-checked", "true")
        expect(page.locator(".ka-mid-depth")).to_have_text("6 of 10")  # MID follows DW-3
        for stage in ("DW-3", "UP-1"):
            press(page, stage, "ArrowLeft", 1)
        expect(page.get_by_role("radio", name="Your own")).to_have_attribute("aria-checked", "true")
        page.get_by_role("combobox", name="MID").select_option("absent")
        expect(shown(page, "parameters")).to_have_text(KOALA_700M)
        expect(kept).to_have_count(5)
        expect(page.get_by_role("radio", name="Your own")).to_have_count(0)
        expect(shown(page, "command")).to_contain_text("koala compress --teacher sdxl-base --spec koala-700m")
        page.get_by_label("2 per encoder stage").check()
        expect(shown(page, "command")).to_contain_text("--spec 0+0,2+2,5+5/-/5+5+5,2+2+2,0+0+0")
        assert page.get_by_test_id("toast-body").count() == 0


def test_size_card_and_widths_change_the_predictions(visit):
    with visit() as page:
        expect(shown(page, "time")).to_have_text("1.40 s")
        page.get_by_role("combobox", name="Hardware").select_option("rtx-3060-ti")
        expect(shown(page, "time")).to_have_text(re.compile(r"^[5-9]\.\d\d s$"))
        page.get_by_role("radio", name="SDXL", exact=True).click()
        expect(shown(page, "parameters")).to_have_text(SDXL)
        expect(shown(page, "memory_note")).to_contain_text("text encoders leave the card")
        assert page.get_by_role("button", name="Compress Tiny SDXL").is_disabled()  # there is nothing to cut
        page.get_by_role("combobox", name="Widths").select_option("tiny-sdxl")
        expect(shown(page, "parameters")).to_have_text("6,442,948")
        expect(page.get_by_role("combobox", name="Picture")).to_have_value("256")


@pytest.mark.slow
def test_a_fresh_cut_is_offered_in_compare_and_draws(visit):
    with visit() as page:
        press(page, "UP-1", "ArrowLeft", 2)
        expect(shown(page, "spec")).to_have_count(0)
        expect(shown(page, "command")).to_contain_text("--spec 0,2,5/-/3+3,2+2,0+0")
        page.get_by_role("button", name="Compress Tiny SDXL").click()
        cut = page.locator(".ka-made li").filter(has_text="Tiny 0,2,5/-/3+3,2+2,0+0 (untrained cut)")
        expect(cut).to_have_count(1)  # besides those that other visitors of this app cut
        title = cut.locator("b").inner_text()
        link = cut.get_by_role("link").get_attribute("href")
        page.get_by_role("tab", name="Compare").click()
        second = page.get_by_role("combobox", name="Second model")
        second.click()
        page.get_by_role("option", name=title).click()
        expect(page.locator(".k-head").nth(1)).to_contain_text(title)
        for which in ("first", "second"):
            steps = page.get_by_role("spinbutton", name=f"Steps of the {which} model")
            steps.fill("2")
            steps.blur()
        page.get_by_role("button", name="Generate").click()
        page.locator(".k-stage[data-phase=done]").wait_for()
        assert page.locator(".k-shot img").nth(1).get_attribute("alt").endswith(f"drawn by {title}")
        page.goto(page.url.rstrip("/") + link)  # the link of the tab does the same
        expect(page.get_by_role("combobox", name="Second model")).to_have_value(title)


@pytest.mark.slow
def test_a_cut_that_is_never_answered_can_be_asked_for_again(visit):
    """Symptom: after a lost request the button said "Cutting …" for ever."""
    with visit() as page:
        page.clock.install()
        page.route("**/queue/join*", lambda route: None)  # never answered
        button = page.locator(".ka-compress")
        button.click()
        expect(button).to_have_text("Cutting …")
        assert button.is_disabled()
        page.clock.run_for(15_000)
        expect(button).to_have_text("Compress Tiny SDXL")
        expect(shown(page, "problem")).to_contain_text("has not answered")
        page.unroute_all(behavior="ignoreErrors")
        button.click()
        expect(page.locator(".ka-made li", has_text="Tiny KOALA-700M (untrained cut)")).to_be_visible()
        expect(shown(page, "problem")).to_have_text("")


@pytest.mark.slow
def test_the_similarity_of_layers_is_measured_live(visit):
    with visit() as page:
        page.get_by_role("button", name="Measure on Tiny SDXL").click()
        expect(page.locator("#k-curves")).to_contain_text("In DW-3", timeout=120_000)
        curves = page.locator("#k-curves")
        assert curves.locator("svg").count() == 5 and curves.locator("polyline").count() == 11
        assert "the first" in curves.inner_text() and "mean over 8 prompts" in curves.inner_text()
        assert page.get_by_role("button", name="Measure on Tiny SDXL").is_enabled()


@pytest.mark.parametrize("theme", [pytest.param("light", marks=pytest.mark.slow), "dark"])
def test_a_phone_has_the_tall_drawing_and_no_sideways_scrolling(visit, theme):
    with visit(PHONE, color_scheme=theme, has_touch=True, reduced_motion="reduce") as page:
        assert page.locator(".ka-tall").is_visible() and not page.locator(".ka-wide").is_visible()
        page.locator('.ka-tall .ka-part[data-path="mid_block.attentions.0"]').tap()
        assert "MID: transformer" in facts(page) and "removed" in facts(page)
        press(page, "DW-3", "ArrowLeft", 1)
        expect(shown(page, "command")).to_contain_text("--spec 0,2,4/-/5+5,2+2,0+0")
        assert page.evaluate("getComputedStyle(document.querySelector('.ka-shape')).transitionDuration") == "0s"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_on_a_phone_a_taps_answer_is_a_short_bar_and_hides_no_part_of_the_drawing(visit, theme):
    """Symptom: the card of a block stood over a quarter of the screen, and over the drawing that it explains."""
    with visit(PHONE, color_scheme=theme, has_touch=True) as page:
        bar, legend = page.locator(".ka-summary"), page.locator(".ka-legend")
        first = page.locator('.ka-tall .ka-part[data-path="down_blocks.0.resnets.0"]')
        first.evaluate("part => scrollBy(0, part.getBoundingClientRect().top - 300)")
        first.tap()
        assert "DW-1: residual block 1 of 2" in bar.inner_text() and " · " in bar.inner_text()
        box = bar.bounding_box()
        assert box["height"] < 80 and box["y"] + box["height"] == pytest.approx(PHONE["height"], abs=2)  # in sight
        page.locator(".ka-depths").evaluate("depths => depths.scrollIntoView({ block: 'center' })")
        below, facts_below = legend.bounding_box(), page.locator(".ka-detail dl").bounding_box()
        assert below["y"] + below["height"] <= bar.bounding_box()["y"] < facts_below["y"]
        assert "Tokens" in page.locator(".ka-detail dl").inner_text()
