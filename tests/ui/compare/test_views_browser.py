"""Four models side by side in a real browser: added, drawn, looked at in every view, zoomed, removed."""

import pytest
from playwright.sync_api import expect

from koala.models.cards import CARDS
from tests.ui.conftest import PAIR, faults
from tests.ui.test_browser import DESKTOP, PHONE, visit  # noqa: F401  (a fixture)

pytestmark = [pytest.mark.browser, pytest.mark.long, pytest.mark.slow]


def transforms(page) -> set[str]:
    return set(page.locator(".k-cell .k-shot img").evaluate_all("all => all.map(i => getComputedStyle(i).transform)"))


@pytest.mark.parametrize(("viewport", "theme"), [(DESKTOP, "light"), (PHONE, "dark")], ids=["desktop", "phone"])
def test_four_models_are_compared(visit, viewport, theme):  # noqa: F811
    here = visit(viewport, theme=theme)
    page = here.page
    add = page.get_by_role("button", name="Add a model")
    add.click()
    page.get_by_role("spinbutton", name="Steps of the third model").wait_for()
    add.click()
    page.get_by_role("spinbutton", name="Steps of the fourth model").wait_for()
    expect(add).to_be_hidden()
    for ordinal in ("first", "second", "third", "fourth"):
        field = page.get_by_role("spinbutton", name=f"Steps of the {ordinal} model")
        field.fill("2")
        field.blur()
    here.generate()
    page.wait_for_function("/^\\d+ % · KOALA$/.test(document.title)")
    here.phase("done")
    page.wait_for_function("document.title === 'KOALA'")
    assert here.pictures.count() == 4
    titles = page.locator(".k-title").all_inner_texts()
    assert titles[:2] == [CARDS[name].title for name in PAIR] and len(set(titles)) == 4
    assert page.locator("#k-verdict-block thead th").count() == 5
    assert page.locator(".k-speedup").count() == 3

    # the slider and the difference compare two of the four, chosen by the visitor, never one with itself
    page.get_by_role("radio", name="Slider").click()
    left, right = page.get_by_label("Left model"), page.get_by_label("Right model")
    right.select_option(label=titles[3])
    places = page.locator(".k-cell .k-shot").evaluate_all("all => all.map(shot => shot.dataset.place)")
    assert places == ["left", "away", "away", "right"]
    left.select_option(label=titles[3])
    assert (left.input_value(), right.input_value()) == ("3", "0")
    assert faults(page) == []
    page.get_by_role("radio", name="Difference").click()
    seen = page.get_by_role("img", name=f"Difference of {titles[3]} and {titles[0]}")
    assert 0 < float(seen.get_attribute("aria-label").split(": ")[1].split()[0]) < 100
    assert faults(page) == []

    # flipping goes round all of them; blinking does it by itself
    page.get_by_role("radio", name="Flip").click()
    flipper = page.locator(".k-flipper")
    shown = []
    for _ in titles:
        shown.append(flipper.inner_text())
        flipper.press("Space")
    assert shown == [f"Showing {title}: flip" for title in titles]
    page.get_by_label("Blink").check()
    before = flipper.inner_text()
    page.wait_for_function("text => document.querySelector('.k-flipper').textContent !== text", arg=before)
    page.get_by_label("Blink").uncheck()

    # one zoom for all pictures, by buttons and keys
    page.get_by_role("radio", name="Side by side").click()
    assert transforms(page) == {"matrix(1, 0, 0, 1, 0, 0)"}
    closer = page.get_by_role("button", name="Zoom in")
    closer.click()
    assert len(transforms(page)) == 1 and next(iter(transforms(page))).startswith("matrix(1.5, 0, 0, 1.5, -")
    moved = transforms(page)
    closer.press("ArrowRight")
    assert len(transforms(page)) == 1 and transforms(page) != moved
    closer.press("0")
    assert transforms(page) == {"matrix(1, 0, 0, 1, 0, 0)"}
    assert faults(page) == []

    # three remain
    page.get_by_role("button", name="Remove the third model").click()
    page.get_by_role("spinbutton", name="Steps of the third model").wait_for(state="detached")
    here.generate()
    here.phase("done")
    page.wait_for_function("document.querySelectorAll('.k-cell').length === 3")
    assert page.locator(".k-title").all_inner_texts() == [titles[0], titles[1], titles[3]]
