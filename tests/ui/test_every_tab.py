"""Every tab as it is met, used once and looked over: on a desktop and on a phone, in light and in dark."""

import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Page, expect

from koala.ui.build import TABS
from tests.ui.conftest import FAULTS, Server, faults, places, watch
from tests.ui.distill.conftest import Trainer

pytestmark = pytest.mark.browser

WIDTHS = {"desktop": 1280, "phone": 390}
UNREADABLE = """<body style="background: #fff; margin: 0">
<p style="color: #777">grey</p> <p style="color: #767676">dark enough</p> <p style="opacity: .5">half there</p>
<p style="color: #949494; font-size: 24px">large</p> <button disabled style="color: #eee">off</button>
<div style="background: #0008"><span style="color: #888">on a veil</span></div>
<svg><rect width="300" height="50" fill="#000" /><text x="5" y="20" fill="#333">in a drawing</text></svg>
<input placeholder="hint"><style>::placeholder { color: #aaa }</style>
<p style="width: 90px; overflow: hidden">cutoffinthemiddle</p>
<div style="width: 500px">wide</div> <div style="overflow: auto" tabindex="0"><p style="width: 500px">scrolled</p></div>
<div style="overflow: auto"><span style="display: block; width: 500px">out of reach</span></div>"""


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Server]:
    """An app with a run to look at."""
    folder = tmp_path_factory.mktemp("every-tab")
    trainer = Trainer(folder / "runs", "first-1", state="done", step=60)
    trainer.draw("step-60", "pink")
    trainer.validate(0.3)
    trainer.keep()
    server = Server(folder / "log.txt", **places(folder))
    yield server
    server.stop()


@pytest.fixture(scope="module", params=[pytest.param("desktop", marks=pytest.mark.slow), "phone"])
def visit(request, browser, server) -> Iterator[tuple[Page, list[str]]]:
    """One page for all tabs, and what went wrong on it so far."""
    page = browser.new_page(viewport={"width": WIDTHS[request.param], "height": 900})
    page.set_default_timeout(90_000)
    wrong = watch(page, server)
    page.goto(server.url)
    page.locator(".k-stage").wait_for()
    yield page, wrong
    page.close()


def one_step(page: Page, models: str) -> None:
    """One step for each of the two models whose sliders have these ids."""
    for slot in "ab":
        number = page.locator(f"#{models}-steps-{slot} input[type=number]")
        number.fill("1")
        number.blur()


def compare(page: Page) -> None:
    one_step(page, "k")
    page.get_by_role("button", name="Generate").click()
    page.locator(".k-stage[data-phase=done]").wait_for()
    page.get_by_role("button", name="Advanced").click()
    page.get_by_role("combobox", name="Second model").click()  # the list of long names stays open
    expect(page.get_by_role("option", name="SDXL Base 1.0")).to_be_visible()


def attention(page: Page) -> None:
    expect(page.locator("#kv-takes")).to_contain_text("Keeps queries and keys")
    one_step(page, "kv")
    page.get_by_role("button", name="Draw and record").click()
    expect(page.locator(".kv-said").nth(1)).to_contain_text("on the most looked at patch")


def distill(page: Page) -> None:
    page.locator(".kd-run").wait_for()
    for folded in ("What is distilled", "Settings of this run", "Validation by noise"):
        page.get_by_role("button", name=folded).click()


def architecture(page: Page) -> None:
    page.get_by_role("radio", name="BK-SDXL").click()
    expect(page.locator('[data-show="parameters"]').first).to_have_text("1,717,277,764")


def benchmark(page: Page) -> None:
    page.get_by_label("128 px").check()
    page.get_by_label("256 px").uncheck()
    for field in ("Steps", "Runs"):
        page.locator(".kb-panes").get_by_label(field, exact=True).fill("1")
    page.get_by_role("button", name="Start").click()
    expect(page.locator("#kb-status")).to_have_text("Done.")


def export(page: Page) -> None:
    page.locator("#kx-target").get_by_label("cpu-int8").check()
    expect(page.locator("#kx-about")).to_contain_text("8 bits")


USES = {use.__name__: use for use in (compare, attention, distill, architecture, benchmark, export)}


@pytest.mark.parametrize("tab", [title for title, _ in TABS])
def test_a_tab_is_used_and_all_of_it_can_be_read(visit, tab):
    page, wrong = visit
    page.get_by_role("tab", name=tab).click()
    expect(page.get_by_role("tab", name=tab)).to_have_attribute("aria-selected", "true")
    assert faults(page) == []
    USES[tab.lower()](page)
    assert faults(page) == []
    page.keyboard.press("Escape")
    assert wrong == []


def test_what_cannot_be_read_is_found(browser):
    page = browser.new_page(viewport={"width": WIDTHS["phone"], "height": 900})
    page.set_content(UNREADABLE)
    result = [re.search("the page|“.*”", fault)[0] for fault in page.evaluate(FAULTS)]
    page.close()
    assert result == [
        "the page",
        "“cutoffinthemiddle”",
        "“wide”",
        "“out of reach”",
        "“out of reach”",
        "“grey”",
        "“half there”",
        "“on a veil”",
        "“in a drawing”",
        "“”",
    ]


@pytest.mark.slow
def test_a_public_app_says_what_it_takes_before_it_is_asked(open_tab, serve):
    with open_tab(serve("--host", "0.0.0.0"), "Compare", {"width": WIDTHS["phone"], "height": 900}) as page:
        expect(page.locator("#k-steps-b [data-testid=max-value]")).to_have_text("50")
        expect(page.locator("#k-steps-b [data-testid=max-value]")).to_be_visible()
        expect(page.get_by_text("saved PNG, at most 10 MB")).to_be_visible()
        page.get_by_role("button", name="Advanced").click()
        expect(page.get_by_text("At most 4 images of the first model's size")).to_be_visible()
        page.get_by_role("tab", name="Attention").click()
        expect(page.locator("#kv-steps-b [data-testid=max-value]")).to_have_text("50")
        expect(page.get_by_text("saved capture, at most 10 MB")).to_be_visible()
        page.get_by_role("button", name="What is recorded").click()
        expect(page.get_by_text("At most 4 times the pixels")).to_be_visible()
        page.get_by_role("tab", name="Distill").click()
        expect(page.get_by_text("at most 12 minutes")).to_be_visible()
        page.get_by_role("tab", name="Benchmark").click()
        expect(page.get_by_text("At most 4 models")).to_be_visible()
        page.get_by_role("tab", name="Export").click()
        expect(page.locator("#kx-off")).to_contain_text("Export is off on this server")
        expect(page.locator("#kx-start")).to_have_count(0)
        assert faults(page) == []
