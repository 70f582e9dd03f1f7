"""The Attention tab in a real browser: point, click, slide, play and download; by keyboard, and on a phone."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.ui.conftest import TITLES

pytestmark = [pytest.mark.browser, pytest.mark.long]

DESKTOP, PHONE = {"width": 1280, "height": 1400}, {"width": 390, "height": 844}
PROMPT = "a red circle left of a blue square <script>alert(1)</script>"
STEPS = 4


@pytest.fixture
def visit(open_tab, app):
    """Opens the tab."""

    @contextmanager
    def visited(viewport=DESKTOP, **settings) -> Iterator[Page]:
        with open_tab(app, "Attention", viewport, **settings) as page:
            expect(page.locator("#kv-takes")).to_contain_text("Keeps queries and keys")
            yield page

    return visited


def draw(page: Page, *steps: int) -> None:
    """Fill in the prompt and each model's steps, and draw by the keyboard."""
    first, second = (steps or (STEPS,)) * (2 // len(steps or (STEPS,)))
    set_steps(page, first, second)
    prompt = page.locator("#kv-prompt textarea")
    prompt.fill(PROMPT)
    prompt.press("Control+Enter")
    page.locator(".kv[data-phase=done]").wait_for()
    expect(readout(page, 1)).to_contain_text("on the most looked at patch")


def set_steps(page: Page, first: int, second: int) -> None:
    for slot, steps in (("a", first), ("b", second)):
        number = page.locator(f"#kv-steps-{slot} input[type=number]")
        number.fill(str(steps))
        number.blur()
    both = f"{first} and {second}" if first != second else f"{first}"
    expect(page.locator("#kv-takes")).to_contain_text(f"over {both} steps")


def readout(page: Page, side: int):
    return page.locator(".kv-said").nth(side)


def status(page: Page):
    return page.locator(".kv-status")


def shot(page: Page, side: int):
    return page.locator(".kv-shot").nth(side)


def place(page: Page, side: int, x: float, y: float) -> dict:
    box = shot(page, side).bounding_box()
    return {"x": x * box["width"], "y": y * box["height"]}


def settled(page: Page, place: str, peek: str = "false") -> None:
    """Waits until the pictures show this place, clicked or (peek) pointed at."""
    page.wait_for_function(
        """([place, peek]) => [...document.querySelectorAll(".kv-mark")].every((m) =>
          `${m.style.left} ${m.style.top}` === place && m.dataset.peek === peek)""",
        arg=[place, peek],
    )


def pixels(page: Page) -> list[str]:
    return page.locator(".kv-shot canvas").evaluate_all("all => all.map((c) => c.toDataURL())")


def download(page: Page, name: str, folder):
    with page.expect_download() as waiting:
        page.get_by_role("button", name=name, exact=True).click()
    path = folder / waiting.value.suggested_filename
    waiting.value.save_as(path)
    return path


def test_pointing_clicking_and_the_arrow_keys_move_both_overlays(visit):
    with visit() as page:
        draw(page)
        expect(status(page)).to_have_text("UP-2, step 3 of 4, mean of 2 heads, 16 × 16 patches")
        expect(page.get_by_role("radio", name=re.compile("^UP-1"))).to_contain_text("8×8")
        shot(page, 0).click(position=place(page, 0, 0.28, 0.53))
        page.mouse.move(5, 5)
        settled(page, "25% 50%")
        before, text = pixels(page), readout(page, 0).inner_text()

        shot(page, 1).hover(position=place(page, 1, 0.9, 0.1))  # hovering the other picture moves both
        settled(page, "87.5% 6.25%", peek="true")
        assert pixels(page) != before
        page.mouse.move(5, 5)  # and what was clicked comes back
        settled(page, "25% 50%")
        expect(readout(page, 0)).to_have_text(text)
        assert pixels(page) == before

        shot(page, 0).focus()
        for key in ("ArrowRight", "ArrowRight", "ArrowUp"):
            page.keyboard.press(key)
        settled(page, "37.5% 43.75%")
        page.keyboard.press("Shift+ArrowLeft")
        page.wait_for_function("document.querySelector('.kv-mark').style.left === '12.5%'")

        box = shot(page, 0).bounding_box()  # a dragged box asks for a region
        page.mouse.move(box["x"] + 5, box["y"] + 5)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + box["height"] * 0.2, steps=4)
        page.mouse.up()
        expect(readout(page, 0)).to_contain_text("on the region itself")


def drag(page: Page, side: int, *places: tuple[float, float]) -> None:
    """With the pointer pressed, from place to place on a picture."""
    box = shot(page, side).bounding_box()
    for k, (x, y) in enumerate(places):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4 if k else 1)
        if not k:
            page.mouse.down()
    page.mouse.up()


@pytest.mark.slow
def test_a_region_is_painted_with_the_pointer_and_with_the_arrow_keys(visit):
    with visit() as page:
        draw(page, 1)
        page.get_by_role("radio", name="Brush").click()
        expect(page.locator(".kv-help")).to_contain_text("Paint over patches")
        mark = page.locator(".kv-mark").first
        drag(page, 0, (0.1, 0.1), (0.1, 0.4), (0.4, 0.4))
        expect(readout(page, 1)).to_contain_text("on the region itself")
        expect(mark).to_have_attribute("data-loose", "true")  # an L, whose outline is no box
        whole = "left: 6.25%; top: 6.25%; width: 37.5%; height: 37.5%;"
        expect(mark).to_have_attribute("style", re.compile(re.escape(whole)))  # it grows as the pointer moves
        shot(page, 1).hover(position=place(page, 1, 0.9, 0.9))  # pointing does not wipe what is painted
        drag(page, 1, (0.8, 0.8), (0.9, 0.8))  # and a second stroke adds to it
        page.wait_for_function("document.querySelector('.kv-mark').style.width === '87.5%'")
        shot(page, 0).click(position=place(page, 0, 0.5, 0.5))  # a click begins anew
        page.wait_for_function("document.querySelector('.kv-mark').style.left === '50%'")
        expect(readout(page, 0)).to_contain_text("on itself")
        shot(page, 0).focus()
        for key in ("ArrowRight", "ArrowDown"):
            page.keyboard.press(key)
        expect(readout(page, 0)).to_contain_text("on the region itself")
        expect(mark).to_have_attribute("data-loose", "true")
        page.get_by_role("radio", name=re.compile("^UP-1")).click()  # all of it lies in one of the larger patches
        expect(readout(page, 0)).to_contain_text("on itself")
        expect(mark).to_have_attribute("data-loose", "false")
        page.get_by_role("radio", name="Patch or box").click()
        shot(page, 0).click(position=place(page, 0, 0.1, 0.1))
        page.wait_for_function("document.querySelector('.kv-mark').style.left === '0%'")


@pytest.mark.slow
def test_runs_of_different_lengths_are_saved_and_opened_again(visit, tmp_path):
    with visit() as page:
        draw(page, 4, 2)
        expect(page.locator(".kv-pace")).to_contain_text("The runs have 4 and 2 steps")
        expect(status(page)).to_contain_text("steps 3 of 4 and")
        with page.expect_download() as waiting:
            page.get_by_role("button", name="Capture", exact=True).click()
        file = tmp_path / waiting.value.suggested_filename
        waiting.value.save_as(file)
        assert file.name.startswith("koala-attention-a-red-circle") and file.suffix == ".zip"
        shown, text = pixels(page), readout(page, 1).inner_text()

        draw(page, 1)
        expect(page.locator(".kv-pace")).to_be_empty()
        page.locator("#kv-prompt textarea").fill("something else")
        page.locator("#kv-open input[type=file]").set_input_files(file)
        expect(page.locator(".kv-pace")).to_contain_text("The runs have 4 and 2 steps")
        expect(page.locator("#kv-prompt textarea")).to_have_value(PROMPT)
        slider = page.get_by_role("slider", name="Step", exact=True)
        slider.fill("2")
        expect(readout(page, 1)).to_have_text(text)
        assert pixels(page) == shown

        (tmp_path / "bad.zip").write_bytes(file.read_bytes()[:5000])
        page.locator("#kv-open input[type=file]").set_input_files(tmp_path / "bad.zip")
        expect(page.get_by_test_id("toast-body")).to_contain_text("not a complete capture")
        assert pixels(page) == shown


@pytest.mark.slow
def test_stages_heads_steps_and_views_change_what_is_shown(visit):
    with visit() as page:
        draw(page)
        slider = page.get_by_role("slider", name="Step", exact=True)
        slider.focus()
        slider.press("ArrowLeft")
        expect(status(page)).to_contain_text("step 2 of 4")
        assert slider.get_attribute("aria-valuetext") == "step 2 of 4"
        page.get_by_label("mean over steps").check()
        expect(status(page)).to_contain_text("mean of 4 steps")
        page.get_by_label("mean over steps").uncheck()
        page.get_by_label("Head", exact=True).select_option("head 2")
        expect(status(page)).to_contain_text("head 2 of 2")
        with_itself = pixels(page)
        page.get_by_label("without the patch itself").check()
        expect(readout(page, 0)).to_contain_text("without itself")
        assert pixels(page) != with_itself

        page.get_by_role("radio", name=re.compile("^MID")).click()
        expect(page.locator(".kv-absent").nth(1)).to_have_text(f"{TITLES[1]} has no MID")
        expect(status(page)).to_contain_text("MID, step 2 of 4")
        page.get_by_role("radio", name=re.compile("^DW-1")).click(force=True)  # it cannot be chosen, and says why
        expect(page.get_by_role("alert").filter(has_text="no attention in DW-1")).to_be_visible()
        page.get_by_role("radio", name=re.compile("^UP-2")).click()
        expect(status(page)).to_contain_text("UP-2")

        page.get_by_role("radio", name="PCA").click()
        expect(readout(page, 1)).to_contain_text("variance shown")
        page.get_by_role("radio", name="PCA").press("ArrowLeft")
        expect(readout(page, 1)).to_contain_text("px on average")
        page.get_by_role("button", name="red", exact=True).click()
        expect(readout(page, 1)).to_contain_text("attention on “red”")
        faint = pixels(page)
        page.get_by_label("Gamma").fill("0.3")
        assert pixels(page) != faint
        page.get_by_label("Opacity").fill("0.2")
        assert page.locator(".kv-shot canvas").first.evaluate("c => getComputedStyle(c).opacity") == "0.2"

        page.locator('.kv-agreement td[data-stage="DW-2"][data-step="3"]').click()
        expect(status(page)).to_contain_text("DW-2, step 4 of 4")
        expect(page.locator(".kv-agreement")).to_contain_text(f"{TITLES[1]} has no MID")
        page.get_by_role("button", name="Play").click()
        for step in (2, 1, 3):  # the film runs on and on
            expect(status(page)).to_contain_text(f"step {step} of 4")
        page.get_by_role("button", name="Pause").click()
        assert page.get_by_test_id("toast-body").count() == 0


@pytest.mark.slow
def test_downloads_and_the_page_that_opens_with_no_server(visit, browser, tmp_path):
    with visit() as page:
        draw(page)
        shot(page, 0).click(position=place(page, 0, 0.28, 0.53))
        page.mouse.move(5, 5)
        settled(page, "25% 50%")
        shown, text = pixels(page), [readout(page, k).inner_text() for k in range(2)]
        with Image.open(download(page, "GIF", tmp_path)) as film:
            assert film.n_frames == STEPS
        for name in ("PNG strip", "Paper figures"):
            with Image.open(download(page, name, tmp_path)) as picture:
                assert picture.format == "PNG" and picture.width > 1000
        file = download(page, "Web page", tmp_path)

    context = browser.new_context(viewport=DESKTOP, offline=True)
    alone, wrong = context.new_page(), []
    alone.on("pageerror", lambda e: wrong.append(str(e)))
    alone.on("dialog", lambda d: (wrong.append(d.message), d.dismiss()))
    alone.goto(file.as_uri())
    expect(alone.get_by_role("heading", level=1)).to_have_text(PROMPT)
    shot(alone, 0).click(position=place(alone, 0, 0.28, 0.53))
    alone.mouse.move(5, 5)
    settled(alone, "25% 50%")
    assert [readout(alone, k).inner_text() for k in range(2)] == text
    assert worst(alone, shown, pixels(alone)) <= 3  # of 255: the browser's softmax against torch's
    alone.get_by_role("radio", name="Brush").click()
    shot(alone, 0).focus()
    alone.keyboard.press("ArrowDown")
    expect(readout(alone, 0)).to_contain_text("on the region itself")
    alone.get_by_role("radio", name="PCA").click()
    expect(readout(alone, 1)).to_contain_text("variance shown")
    alone.get_by_role("radio", name=re.compile("^MID")).click()
    expect(alone.locator(".kv-absent").nth(1)).to_have_text(f"{TITLES[1]} has no MID")
    expect(alone.locator(".kv-agreement")).to_contain_text("at the right each stage's mean")
    assert wrong == []
    context.close()


def worst(page: Page, some: list[str], others: list[str]) -> int:
    """The largest difference of any channel between two lists of pictures."""
    return page.evaluate(
        """async ([some, others]) => {
          const read = async (url) => {
            const image = new Image();
            image.src = url;
            await image.decode();
            const canvas = new OffscreenCanvas(image.width, image.height), context = canvas.getContext("2d");
            context.drawImage(image, 0, 0);
            return context.getImageData(0, 0, image.width, image.height).data;
          };
          let found = 0;
          for (let k = 0; k < some.length; k += 1) {
            const [a, b] = [await read(some[k]), await read(others[k])];
            a.forEach((v, i) => { found = Math.max(found, Math.abs(v - b[i])); });
          }
          return found;
        }""",
        [some, others],
    )


def finger(page: Page, side: int, *places: tuple[float, float]) -> None:
    """A finger drawn over a picture, as the touch screen tells it."""
    box, touch = shot(page, side).bounding_box(), page.context.new_cdp_session(page)
    points = [{"x": box["x"] + x * box["width"], "y": box["y"] + y * box["height"]} for x, y in places]
    for kind, at in (("touchStart", points[:1]), *(("touchMove", [p]) for p in points[1:]), ("touchEnd", [])):
        touch.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": at})


@pytest.mark.slow
def test_on_a_phone_a_tap_marks_a_patch_and_a_finger_paints(visit):
    with visit(PHONE, has_touch=True, is_mobile=True, color_scheme="dark") as page:
        draw(page, 2)
        shot(page, 1).scroll_into_view_if_needed()
        shot(page, 1).tap(position=place(page, 1, 0.9, 0.9))
        settled(page, "87.5% 87.5%")
        page.get_by_role("radio", name="Brush").tap()
        finger(page, 0, (0.2, 0.2), (0.2, 0.8))
        expect(readout(page, 1)).to_contain_text("on the region itself")
        page.wait_for_function("document.querySelector('.kv-mark').style.height === '62.5%'")
        first, second = (shot(page, k).bounding_box() for k in range(2))
        assert abs(first["y"] - second["y"]) < 2 and second["width"] > 150


@pytest.mark.slow
def test_stop_ends_a_run_and_brings_back_what_was_there(visit):
    with visit() as page:
        draw(page, 1)
        set_steps(page, 200, 200)
        page.get_by_role("button", name="Draw and record").click()
        page.locator(".kv[data-phase=running]").wait_for()
        expect(page.locator(".kv-count").first).to_contain_text("/ 200")
        page.keyboard.press("Escape")
        page.locator(".kv[data-phase=done]").wait_for()
        expect(readout(page, 0)).to_contain_text("on the most looked at patch")
        shot(page, 0).click(position=place(page, 0, 0.9, 0.1))
        page.wait_for_function("document.querySelector('.kv-mark').style.left === '87.5%'")
