"""Runs that fail, in a real browser: the page says what the API says, and the next run works; one page for each tab."""

import html
import shutil
from collections.abc import Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from playwright.sync_api import Page, expect
from safetensors.torch import save_file

from koala.models.cards import EMBEDDED
from tests import forked
from tests.safety.conftest import QUICK, TEACHER, Public, Refused
from tests.ui.conftest import places, serve_app

pytestmark = pytest.mark.browser

ABSENT = "koala-lightning-700m"  # nobody has it before a download
STUDENT = "tiny-koala-700m"


def serve_starved(short: str, *arguments: str) -> int:
    """The app on a machine whose allocator refuses for as long as the file `short` is there."""
    attend = torch.nn.functional.scaled_dot_product_attention

    def attention(*given, **options):
        if Path(short).exists():
            torch.empty(2**50, dtype=torch.uint8)  # torch's own allocator says no
        return attend(*given, **options)

    torch.nn.functional.scaled_dot_product_attention = attention
    return serve_app(*arguments)


class Starved(Public):
    """An app with a damaged model, whose allocator can be made to refuse."""

    def __init__(self, folder: Path):
        self.short, self.damaged = folder / "short", folder / "damaged"
        shutil.copytree(EMBEDDED / STUDENT, self.damaged)
        weights = self.damaged / "unet" / "diffusion_pytorch_model.safetensors"
        weights.write_bytes(weights.read_bytes()[:5000])
        super().__init__(folder / "log.txt", "--models", TEACHER, str(self.damaged), **places(folder))

    def start(self, *arguments: str, **environment: str) -> BaseProcess:
        return forked.start(self.log, serve_starved, str(self.short), *arguments, **environment)

    def says(self, door: str, **change) -> str:
        """The sentence with which the API refuses this."""
        with pytest.raises(Refused) as refused:
            self.call(door, QUICK | change)
        return html.unescape(str(refused.value))


@pytest.fixture(scope="module")
def server(tmp_path_factory) -> Iterator[Starved]:
    starved = Starved(tmp_path_factory.mktemp("failures"))
    yield starved
    starved.stop()


@pytest.fixture
def starved(server) -> Iterator[None]:
    server.short.touch()
    yield
    server.short.unlink()


def choose(page: Page, prefix: str, name: str) -> None:
    """Name the second model."""
    field = page.locator(f"#{prefix}-model-b input")
    field.fill(name)
    field.press("Enter")


def small(page: Page, prefix: str) -> None:
    """One step of 64 px for each model."""
    for slot in "ab":
        number = page.locator(f"#{prefix}-steps-{slot} input[type=number]")
        number.fill("1")
        number.blur()
    for side in ("Width, px", "Height, px"):
        field = page.get_by_role("tabpanel").get_by_label(side).locator("visible=true")
        field.fill("64")
        field.blur()


def dismissed(page: Page, message: str) -> None:
    """The sentence is in a toast, which goes away."""
    toast = page.get_by_test_id("toast-body").first
    expect(toast).to_contain_text(message)
    toast.get_by_test_id("toast-close").click()
    toast.wait_for(state="detached")


def lora_for_sdxl(file: Path) -> Path:
    """One of SDXL's own width."""
    layer = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q"
    factors = {f"{layer}.lora_down": torch.zeros(1, 640), f"{layer}.lora_up": torch.zeros(640, 1)}
    save_file({f"{name}.weight": factor for name, factor in factors.items()}, file)
    return file


@pytest.mark.slow
def test_compare_says_why_a_run_failed_and_the_next_one_works(open_tab, server, tmp_path):
    """Symptom: the page said "Loading ..." for ever, and Generate stayed off."""

    def fails(message: str) -> None:
        generate.click()
        expect(status).to_have_text(message)
        expect(page.locator(".k-stage")).to_have_attribute("data-phase", "failed")
        dismissed(page, message[:60])

    with open_tab(server, "Compare") as page:
        generate, status = page.get_by_role("button", name="Generate"), page.locator(".k-stage .k-status")
        page.get_by_role("button", name="Advanced").click()
        small(page, "k")
        fails(server.says("compare", models=[TEACHER, str(server.damaged)]))
        choose(page, "k", ABSENT)
        small(page, "k")
        fails(server.says("compare", models=[TEACHER, ABSENT]))
        choose(page, "k", STUDENT)
        small(page, "k")
        lora = lora_for_sdxl(tmp_path / "style.safetensors")
        page.locator("#k-lora input[type=file]").set_input_files(lora)
        expect(page.locator("#k-lora")).to_contain_text("style")
        fails(server.says("compare", models=[TEACHER, STUDENT], lora=str(lora)))
        page.locator("#k-lora").get_by_label("Clear").click()
        server.short.touch()
        try:
            message = server.says("compare", models=[TEACHER, STUDENT]).partition(":")[0]
            generate.click()
            expect(status).to_contain_text(message)  # how much was free changes
            expect(page.locator(".k-stage")).to_have_attribute("data-phase", "failed")
        finally:
            server.short.unlink()
        dismissed(page, message)
        generate.click()
        page.locator(".k-stage[data-phase=done]").wait_for()


def test_attention_says_why_a_run_failed_and_the_next_one_works(open_tab, server):
    """Symptom: a failed run said "Stopped."."""

    def fails(message: str, status) -> None:
        page.get_by_role("button", name="Draw and record").click()
        expect(status).to_contain_text(message)
        dismissed(page, message[:60])

    with open_tab(server, "Attention") as page:
        status, problem = page.locator(".kv-status"), page.locator(".kv-problem")
        page.get_by_role("button", name="What is recorded").click()
        choose(page, "kv", str(server.damaged))
        small(page, "kv")
        fails(server.says("attention", models=[TEACHER, str(server.damaged)]), status)
        expect(page.locator(".kv")).to_have_attribute("data-phase", "failed")
        choose(page, "kv", ABSENT)
        small(page, "kv")
        fails(server.says("attention", models=[TEACHER, ABSENT]), status)
        choose(page, "kv", STUDENT)
        small(page, "kv")
        page.get_by_role("button", name="Draw and record").click()
        page.locator(".kv[data-phase=done]").wait_for()
        server.short.touch()
        try:
            message = server.says("attention", models=[TEACHER, STUDENT]).partition(":")[0]
            fails(message, problem)
        finally:
            server.short.unlink()
        expect(page.locator(".kv")).to_have_attribute("data-phase", "done")  # the capture before
        page.get_by_role("button", name="Draw and record").click()
        expect(problem).to_be_empty()
        page.locator(".kv[data-phase=done]").wait_for()


@pytest.mark.slow
def test_a_benchmark_and_a_measurement_say_why_they_failed_and_the_next_one_works(open_tab, server):
    with open_tab(server, "Benchmark") as page:
        start, status = page.locator("#kb-start"), page.locator("#kb-status")
        page.get_by_label("256 px").uncheck()
        for field in ("Steps", "Runs"):
            page.locator(".kb-panes").get_by_label(field, exact=True).fill("1")
        measure, curves = page.locator("#k-similarity"), page.locator("#k-curves")
        server.short.touch()
        try:
            start.click()
            expect(status).to_contain_text("Memory ran out on cpu")
            expect(start).to_be_enabled()
            dismissed(page, "Memory ran out on cpu")
            page.get_by_role("tab", name="Architecture").click()
            measure.click()
            expect(curves).to_contain_text("memory")
            dismissed(page, "memory")
        finally:
            server.short.unlink()
        measure.click()
        expect(curves.locator("svg").first).to_be_visible()
        page.get_by_role("tab", name="Benchmark").click()
        start.click()
        expect(status).to_contain_text("Waiting: 1 before you")  # behind the measurement
        page.locator("#kb-stop").click()
        expect(status).to_have_text("Stopped.")
