"""Pages of other sites in a real browser: none reads the app, drives it, uploads to it or shows it in a frame."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser

from recipes.measure.foreign_pages import (
    ANSWERS,
    ATTACK,
    REBOUND,
    foreign_site,
    framed,
    rebinding_browser,
    start_of_a_distillation,
)


@pytest.fixture(scope="module")
def foreign_port() -> Iterator[int]:
    with foreign_site() as port:
        yield port


@pytest.fixture(scope="module")
def rebinding(chromium: str) -> Iterator[Browser]:
    with rebinding_browser(chromium) as browser:
        yield browser


def runs(app) -> list[Path]:
    folder = app.log.parent / "runs"
    return list(folder.iterdir()) if folder.exists() else []


def planted(app) -> list[Path]:
    return list((app.log.parent / "files").rglob("planted.png"))


@pytest.mark.parametrize(
    ("name", "targets"),
    [("localhost", ["127.0.0.1", "localhost", "x.localhost"]), (REBOUND, ["127.0.0.1", "localhost.", REBOUND])],
    ids=["same site", "another site"],
)
def test_no_page_of_another_site_drives_the_app(app, rebinding, foreign_port, name, targets):
    port = app.url.rstrip("/").rpartition(":")[2]
    begun, files = runs(app), planted(app)
    page = rebinding.new_page()
    page.goto(f"http://{name}:{foreign_port}/")
    start = start_of_a_distillation(app.url)
    for target in targets:
        message = page.evaluate(ATTACK, [f"http://{target}:{port}/", start])
        assert len(message) == 8 and set(message.values()) <= ANSWERS, (target, message)
    assert len(page.frames) == 1 + len(targets) and not any(framed(page))
    assert planted(app) == files and runs(app) == begun
    page.close()


@pytest.mark.parametrize("name", ["x.localhost", "localhost.", REBOUND])
def test_a_name_that_points_here_opens_no_page(app, rebinding, name):
    """After rebinding the foreign page and the app are one origin for the browser; only the name tells."""
    page = rebinding.new_page()
    answer = page.goto(app.url.replace("127.0.0.1", name))
    assert answer.status == 403 and "this app answers to 127.0.0.1" in page.content()
    page.close()


def test_the_apps_own_page_does_all_that(app, rebinding, foreign_port):
    """The attack works where it is none; and a link on another site opens the page."""
    url = app.url.replace("127.0.0.1", "localhost")
    page = rebinding.new_page()
    page.goto(f"http://x.localhost:{foreign_port}/")
    page.evaluate("url => { location.href = url }", url)
    page.wait_for_selector("#k-prompt")
    message = page.evaluate(ATTACK, [url, None])
    assert (message["config, cors"], message["upload, cors"]) == (200, 200)
    assert framed(page) == [False]  # in no frame, of its own neither
    page.close()
    for file in planted(app):
        file.unlink()
