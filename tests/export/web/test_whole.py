"""The true teacher and student, in every type and on every back end: what takes minutes."""

import gzip
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Browser, Page, expect

from koala.export.command import main
from koala.export.web import site
from koala.models.library import Library
from koala.sampling.generate import generate
from koala.sampling.result import read_png
from tests.export.web.conftest import NAMES, phase, ready, served, watch
from tests.export.web.test_page import LINK, picture, pixels
from tests.export.web.test_site import BUDGET_FIRST, BUDGET_WHOLE

pytestmark = [pytest.mark.slow, pytest.mark.browser, pytest.mark.long]

SOFTWARE_GPU = ["--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan"]
MODELS = ("tiny-sdxl", "tiny-koala-700m")


@pytest.fixture(scope="session")
def whole(once, runtime) -> Path:
    """The site of the command in the documentation."""

    def make(folder: Path) -> None:
        arguments = ["--target", "web", "--models", *MODELS, "--runtime", str(runtime), "--pictures", "1"]
        assert main([*arguments, "--out", str(folder)]) == 0

    return once("web-whole", make)


def drawn(page: Page) -> list[bytes]:
    page.locator("#generate").click()
    phase(page, "done")
    return [picture(page, k) for k in range(page.locator(".head a").count())]


def worst(content: bytes, library: Library, model: str) -> int:
    """The largest difference to what the library's model draws of the request that a picture carries."""
    request = read_png(content)["request"]
    card = library.get(model)
    output = {k: v for k, v in request.to_dict().items() if k != "model"}
    again = generate(type(request)(model=card.card.name, **output), card)
    return int(np.abs(pixels(content) - np.asarray(again.images[0], np.int16)).max())


def test_teacher_and_student_draw_what_torch_draws(whole, browser, library):
    """The models' own settings: 25 guided ancestral steps at 256 px; then an odd size, a long prompt, no guidance."""
    with served(whole) as server:
        page = browser.new_page()
        wrong = watch(page, server.url)
        page.goto(server.url + "#seed=11")
        ready(page)
        expect(page.locator(f"#state-{MODELS[0]}")).not_to_have_attribute("data-state", "ready")  # it loads afterwards
        expect(page.locator(f"#state-{MODELS[0]}")).to_contain_text("MB")
        result = drawn(page)
        long = f"#prompt=a+yellow+star{'+and+a+ring' * 40}&seed=5&width=320&height=192&steps=6,9&guidance=1,4"
        page.goto(server.url + long)
        result += drawn(page)
        assert read_png(result[2])["unread"]["prompt"].startswith("and a ring and")
        differences = [worst(one, library, MODELS[k % 2]) for k, one in enumerate(result)]
        print(f"largest differences {differences} of 255")
        assert max(differences) <= 2 and wrong == []
        page.close()


def test_the_whole_site_is_within_its_budget(whole):
    own = json.loads((whole / "site.json").read_text())
    sizes = {f.relative_to(whole).as_posix(): f.read_bytes() for f in whole.rglob("*") if f.is_file()}
    sent = {name: len(gzip.compress(content, 9)) for name, content in sizes.items()}
    student, wasm = own["models"][1], own["runtime"]["backends"]["wasm"]
    first = {*own["page"], "sw.js", *student["parts"].values(), *student["tokenizers"], *wasm.values()}
    print(f"first {sum(sent[n] for n in first) / 1e6:.1f} MB, whole {sum(sent.values()) / 1e6:.1f} MB")
    assert sum(sent[n] for n in first) < BUDGET_FIRST and sum(sent.values()) < BUDGET_WHOLE
    teacher = own["models"][0]
    assert {p: n for p, n in teacher["parts"].items() if p != "unet"} == {
        p: n for p, n in student["parts"].items() if p != "unet"
    }


def test_half_precision_draws_what_onnx_runtime_draws(exported_700m, runtime, browser, library, tmp_path):
    """The same fp16 file on both sides."""
    site.write([exported_700m], tmp_path / "site", runtime=runtime)
    with served(tmp_path / "site") as server:
        page = browser.new_page()
        page.goto(server.url + "#seed=3")
        result = [drawn(page)[0]]
        for seed in (77, 5, 6):
            page.goto(f"{server.url}#prompt=a+yellow+star+above+a+purple+ring&seed={seed}&width=128&height=128&steps=8")
            result.append(drawn(page)[0])
        differences = [worst(one, library, str(exported_700m)) for one in result]
        print(f"largest differences {differences} of 255")
        assert max(differences) <= 4
        page.close()


@pytest.fixture(scope="module")
def card(chromiums) -> Browser:
    """A Chromium with a graphics card that software imitates."""
    return chromiums(*SOFTWARE_GPU)


def test_webgpu_is_tried_then_draws_the_same(card, pages):
    with served(pages) as server:
        page = card.new_page()
        page.set_default_timeout(180_000)
        wrong = watch(page, server.url)
        asked = []
        page.context.on("request", lambda r: asked.append(r.url))
        page.goto(server.url + LINK.replace("=128", "=64").replace("steps=4,4", "steps=2,2"))
        ready(page)
        before = drawn(page)
        assert not [url for url in asked if "asyncify" in url or "webgpu" in url]  # only when it is chosen
        page.locator("#backend").select_option("webgpu")
        page.locator("#backend-note", has_text="Drawn by the graphics card").wait_for()
        ready(page)
        after = drawn(page)
        assert [url for url in asked if "asyncify" in url]
        result = max(int(np.abs(pixels(a) - pixels(b)).max()) for a, b in zip(before, after, strict=True))
        print(f"WebGPU against WebAssembly: {result}/255")
        assert result <= 2 and read_png(after[0])["device"] == "a browser's WebGPU"
        assert [w for w in wrong if "powerPreference" not in w] == []
        page.close()


def test_a_webgpu_that_cannot_be_loaded_is_given_up_and_said(card, pages):
    with served(pages) as server:
        page = card.new_page()
        page.context.route("**/*asyncify*.wasm.gz", lambda route: route.fulfill(status=404))
        page.goto(server.url + LINK.replace("=128", "=64"))
        ready(page)
        page.locator("#backend").select_option("webgpu")
        note = page.locator("#backend-note")
        expect(note).to_contain_text("WebGPU was given up:", timeout=120_000)
        expect(note).to_contain_text("the server says 404")
        expect(note).to_contain_text("The processor draws instead.")
        ready(page)
        assert len(drawn(page)) == len(NAMES)
        page.close()


def test_a_webgpu_that_fails_or_lies_is_left_for_the_processor(card, pages, tmp_path):
    """One whose trial is wrong, and one that fails in the middle of a drawing."""
    lies, fails = tmp_path / "lies", tmp_path / "fails"
    for folder, wrong in (
        (lies, "if (this.gpu) return latents.map(() => 0.5);"),
        (fails, 'if (this.gpu && latents.length > 256) throw new Error("the device was lost");'),
    ):
        shutil.copytree(pages, folder)
        source = (folder / "pipeline.js").read_text()
        begins = "async predict(plan, latents, k) {"
        assert source.count(begins) == 1 and source.count("warm: new Set() });") == 1
        source = source.replace(begins, f"{begins} {wrong}")
        source = source.replace("warm: new Set() });", 'warm: new Set(), gpu: sessions.backend === "webgpu" });')
        (folder / "pipeline.js").write_text(source)
    for folder, words in ((lies, "it computes something else than the processor does"), (fails, "the device was lost")):
        with served(folder) as server:
            page = card.new_page()
            page.set_default_timeout(180_000)
            page.goto(server.url + LINK.replace("steps=4,4", "steps=2,2"))
            ready(page)
            page.locator("#backend").select_option("webgpu")
            if folder == fails:
                page.locator("#backend-note", has_text="Drawn by the graphics card").wait_for()
            else:
                expect(page.locator("#backend-note")).to_contain_text(words, timeout=180_000)
            files = drawn(page)
            expect(page.locator("#backend-note")).to_contain_text(words)
            expect(page.locator("#backend-note")).to_contain_text("The processor draws instead.")
            assert [read_png(one)["device"] for one in files] == ["a browser, 1 thread"] * 2
            page.close()
