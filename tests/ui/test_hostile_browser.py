"""Text from strangers where the app shows it, in a real browser: it stays text, in every tab."""

import json
from pathlib import Path
from urllib.parse import quote

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import Page, expect
from safetensors.torch import save_file

from koala.models.cards import EMBEDDED
from koala.models.export_manifest import MANIFEST
from koala.request import GenerationRequest
from koala.sampling.result import KEY
from koala.ui.build import TABS
from tests.ui.distill.conftest import Trainer

pytestmark = pytest.mark.browser

# Runs where it is taken for HTML, for an attribute, for Gradio's template or for JavaScript's.
IMAGE = "<img src=x onerror=window.ran=1>"  # also a file's name: it has no slash
HOSTILE = f"a red circle {IMAGE}<svg onload=window.ran=1>\"'><script>window.ran=1</script>${{window.ran=1}}{{{{this}}}}"


def picture(file: Path, request: GenerationRequest) -> Path:
    """A PNG whose texts are hostile; only the request is ours to read."""
    info = PngInfo()
    info.add_text(KEY, json.dumps({"request": request.to_dict(), "compared": []}))
    for name in ("Title", "Comment", IMAGE):
        info.add_text(name, HOSTILE)
    Image.new("RGB", (8, 8)).save(file, pnginfo=info)
    return file


def style(file: Path) -> Path:
    layer = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
    save_file({f"{layer}.lora_A.weight": torch.zeros(1, 32), f"{layer}.lora_B.weight": torch.zeros(32, 1)}, file)
    return file


def one_step(page: Page, models: str) -> None:
    for slot in "ab":
        number = page.locator(f"#{models}-steps-{slot} input[type=number]")
        number.fill("1")
        number.blur()


@pytest.mark.slow
def test_hostile_text_runs_nowhere(open_tab, serve, tmp_path):
    """`open_tab` watches for dialogs, for errors and for requests to anybody else."""
    model = tmp_path / IMAGE
    model.symlink_to(EMBEDDED / "tiny-koala-700m")
    trainer = Trainer(tmp_path / "runs", IMAGE, state="failed", step=2)
    trainer.step(2, message=HOSTILE)
    (tmp_path / "exports" / IMAGE).mkdir(parents=True)
    (tmp_path / "exports" / IMAGE / MANIFEST).write_text(HOSTILE)
    server = serve("--models", "tiny-sdxl", str(model))
    query = f"?prompt={quote(HOSTILE)}&seed={quote(HOSTILE)}&models=tiny-sdxl,{quote(HOSTILE)}"
    with open_tab(server, "Compare", query=query) as page:  # a second visit would break off what the first one asks
        prompt = page.locator("#k-prompt textarea")
        expect(prompt).to_have_value(HOSTILE)
        expect(page.get_by_test_id("toast-text").first).to_contain_text(IMAGE[:20])
        prompt.fill("")
        asked = GenerationRequest(
            model="tiny-sdxl", prompt=HOSTILE, negative_prompt=HOSTILE, lora=f"{IMAGE}.safetensors"
        )
        page.locator("#k-restore input[type=file]").set_input_files(picture(tmp_path / f"{IMAGE}.png", asked))
        expect(prompt).to_have_value(HOSTILE)
        page.get_by_role("button", name="Advanced").click()
        page.locator("#k-lora input[type=file]").set_input_files(style(tmp_path / f"{IMAGE}.safetensors"))
        expect(page.locator("#k-lora")).to_contain_text("onerror")
        one_step(page, "k")
        page.get_by_role("button", name="Generate").click()
        page.locator(".k-stage[data-phase=done]").wait_for()
        page.get_by_role("tab", name="Attention").click()
        page.locator("#kv-prompt textarea").fill(HOSTILE)
        one_step(page, "kv")
        page.get_by_role("button", name="Draw and record").click()
        expect(page.locator(".kv-said").nth(1)).to_contain_text("on the most looked at patch")
        page.get_by_role("tab", name="Distill").click()
        expect(page.locator(".kd-run").first).to_contain_text(IMAGE)
        expect(page.locator("#kd-standing")).to_contain_text(IMAGE)
        page.get_by_role("tab", name="Export").click()
        expect(page.get_by_role("heading", name=IMAGE)).to_be_visible()
        for title, _ in TABS:
            page.get_by_role("tab", name=title).click()
            page.get_by_role("tabpanel").locator("visible=true").first.wait_for()
            assert page.evaluate("window.ran") is None, title
            assert page.locator("img[src=x], [onerror], [onload]").count() == 0, title
