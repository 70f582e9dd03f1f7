"""The Export tab in a real browser: look at exports, copy lines, take one along, delete; and, slow, make one."""

import json
import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from koala.models.cards import CARDS
from koala.models.export_manifest import MANIFEST, list_exports
from tests.ui.conftest import PAIR, TITLES, faults

pytestmark = [pytest.mark.browser, pytest.mark.long]

DESKTOP, PHONE = {"width": 1280, "height": 1000}, {"width": 390, "height": 844}


@pytest.fixture
def root(tmp_path) -> Path:
    """Where the app that `serve` starts has its exports."""
    return tmp_path / "exports"


@pytest.fixture
def visit(open_tab, serve):
    """An app of the test's own, and its tab."""

    @contextmanager
    def visited(*arguments: str, viewport=DESKTOP, **settings) -> Iterator[Page]:
        with open_tab(serve(*arguments), "Export", viewport, **settings) as page:
            page.locator(".kx-details, .kd-empty:visible").first.wait_for()
            yield page

    return visited


def turn_to_compare(page: Page) -> None:
    """Its choices arrive before a list is opened: Gradio's open list fails over choices that become fewer."""
    with page.expect_response(lambda r: "/run/" in r.url and "(ONNX)" in r.text()):
        page.get_by_role("tab", name="Compare").click()


@pytest.mark.slow
@pytest.mark.parametrize("viewport", [DESKTOP, pytest.param(PHONE, marks=pytest.mark.slow)], ids=["desktop", "phone"])
def test_an_export_is_looked_at_taken_along_and_deleted(visit, root, exported_700m, viewport, tmp_path):
    for name in ("first", "second"):
        shutil.copytree(exported_700m, root / name)
        (root / name / MANIFEST).touch()
    with visit(viewport=viewport, permissions=["clipboard-read", "clipboard-write"]) as page:
        details = page.locator(".kx-details")
        expect(details.locator("h3")).to_have_text("second")
        assert faults(page) == []
        page.get_by_role("button", name="first", exact=True).click()
        expect(details.locator("h3")).to_have_text("first")
        page.get_by_role("button", name="Copy: This project").click()
        expect(page.get_by_role("button", name="Copy: This project")).to_have_text("Copied")
        copied = page.evaluate("navigator.clipboard.readText()")
        assert copied.startswith("python -m koala generate --model ") and str(root / "first") in copied
        with page.expect_download() as caught:
            page.get_by_role("button", name="Download zip").click()
        assert caught.value.suggested_filename == "first.zip"
        caught.value.save_as(tmp_path / "taken.zip")
        with zipfile.ZipFile(tmp_path / "taken.zip") as packed:
            assert packed.read("first/unet/model.onnx") == (root / "first" / "unet" / "model.onnx").read_bytes()
        page.get_by_role("button", name="Delete …").click()
        expect(page.locator(".kd-sure").last).to_contain_text("Delete first for good")
        page.get_by_role("button", name="Delete it").click()
        expect(details.locator("h3")).to_have_text("second")
        assert [folder.name for folder in list_exports(root)] == ["second"]
        turn_to_compare(page)
        page.get_by_role("combobox", name="Second model").click()
        expect(page.get_by_role("option", name="Tiny KOALA-700M (ONNX)")).to_have_count(1)


@pytest.mark.slow
def test_the_app_may_let_strangers_export_the_embedded_models(visit):
    with visit("--host", "0.0.0.0", "--export") as page:
        expect(page.locator("#kx-start")).to_be_visible()
        page.get_by_role("combobox", name="Model", exact=True).click()
        others = [card.title for name, card in CARDS.items() if card.embedded and name not in PAIR]
        expect(page.get_by_role("option")).to_have_text([f"✓ {title}" for title in (*TITLES, *others)])
        expect(page.get_by_text("Fuse a LoRA into it")).to_have_count(0)


@pytest.mark.slow
def test_an_export_passes_its_gates_before_ones_eyes(visit, root, tmp_path):
    with visit() as page:
        page.get_by_label("U-Net alone").check()
        page.get_by_role("button", name="Start").click()
        run = page.locator(".kx-job")
        expect(run).to_have_attribute("data-state", "running")
        expect(run.locator(".kx-steps")).to_contain_text("Trace U-Net", timeout=300_000)
        expect(page.get_by_role("button", name="Start")).to_be_disabled()
        expect(run.locator("[data-gate=structure]")).to_have_attribute("data-word", "pass", timeout=300_000)
        expect(run).to_have_attribute("data-state", "done", timeout=300_000)
        rows = page.locator(".kx-details .kx-gates li")
        expect(rows).to_have_count(6)
        words = rows.evaluate_all("rows => rows.map(r => [r.dataset.gate, r.dataset.word])")
        assert dict(words) == {
            "structure": "pass",
            "numbers": "pass",
            "parts": "skip",
            "range": "pass",
            "pictures": "skip",
            "speed": "pass",
        }
        expect(page.locator(".kx-details .k-speedup strong")).to_contain_text("×")
        with page.expect_download() as caught:
            page.get_by_role("button", name="Download zip").click()
        caught.value.save_as(tmp_path / "taken.zip")
        with zipfile.ZipFile(tmp_path / "taken.zip") as packed:
            manifest = json.loads(packed.read(f"tiny-koala-700m-universal-fp16-unet/{MANIFEST}"))
        assert list(manifest["components"]) == ["unet"] and "numbers" in manifest["parity"]["passed"]
        turn_to_compare(page)
        page.get_by_role("combobox", name="Second model").click()
        expect(page.get_by_role("option", name="Tiny KOALA-700M (ONNX)")).to_have_count(1)
