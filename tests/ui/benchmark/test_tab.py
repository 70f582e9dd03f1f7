"""The Benchmark tab: what it shows is what was measured, escaped, and a visitor can run, stop and download it."""

import json
import re
import shlex
import time
from dataclasses import replace
from pathlib import Path

import gradio as gr
import pytest
from playwright.sync_api import expect, sync_playwright

from koala.benchmark.matrix import Matrix
from koala.cli.main import parser
from koala.compress.surgery import compress
from koala.models.cards import CARDS
from koala.models.registry import find
from koala.ui.benchmark import chart as bench_chart
from koala.ui.benchmark.chart import status
from koala.ui.benchmark.tab import MAX_MODELS, Bench, command
from koala.ui.session import Session
from tests.ui.conftest import PAIR
from tests.ui.handlers import Visitor, named

pytestmark = pytest.mark.long

DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}


def row(model: str = "tiny-sdxl", **change) -> dict:
    return {
        "model": model,
        "preset": "quality",
        "size": 256,
        "images": 1,
        "steps": 4,
        "text_ms": 10.0,
        "unet_step_ms": 60.0,
        "unet_ms": 240.0,
        "vae_ms": 150.0,
        "total_ms": 400.0,
        "total_range_ms": (390.0, 450.0),
        "pictures_per_second": 2.5,
        "peak_memory_bytes": 650_000_000,
        "memory_of": "process",
        "hardware": "measured here",
        "predicted": {
            "text_ms": 8.0,
            "unet_step_ms": 75.0,
            "unet_ms": 300.0,
            "vae_ms": 192.0,
            "total_ms": 500.0,
            "peak_memory_bytes": 700_000_000,
        },
    } | change


def report(*rows: dict, skipped: tuple[dict, ...] = ()) -> dict:
    return {
        "rows": list(rows),
        "not_reached": list(skipped),
        "speedup": {"baseline": "tiny-sdxl", "rows": []},
        "matrix": {"repeats": 3},
        "device": "a <b>CPU</b>",
        "date": "2026-01-01",
        "command": "python -m koala bench",
    }


def test_bars_share_one_scale_and_mark_the_prediction():
    html = bench_chart.panel(report(row(), row("tiny-koala-700m", total_ms=200.0, unet_ms=40.0)), str)
    widths = [float(w) for w in re.findall(r'k-unet" style="width:([\d.]+)%', html)]
    assert widths[0] == pytest.approx(6 * widths[1], rel=1e-2)
    assert 'k-rest" style="width:0.00%' in html  # 10 + 240 + 150 of 400 ms: nothing is left
    marks = re.findall(r'kb-mark" style="left:([\d.]+)%', html)
    assert marks[0] == marks[1] == f"{100 / 1.02:.2f}"  # both predictions are the longest of all
    assert "500 ms predicted" in html


def test_every_column_has_its_heading():
    html = bench_chart.panel(report(row(images=2)), str)
    figures = re.findall(r"<td>(.*?)</td>", html)
    heads = re.findall(r'<th scope="col">(.*?)</th>', html)[1:]
    assert dict(zip(heads, figures, strict=True)) == {
        "px": "256<small>2 at once</small>",
        "text": "10 ms<small>8 ms</small>",
        "U-Net step": "60.0 ms<small>75.0 ms</small>",
        "VAE": "150 ms<small>192 ms</small>",
        "total": "400 ms<small>500 ms</small>",
        "range": "390 ms to 450 ms",
        "pictures/s": "2.5",
        "peak memory": "0.65 GB<small>0.70 GB</small>",
    }


def test_sizes_and_batches_stand_apart():
    html = bench_chart.panel(report(row(), row(size=128), row(images=2), row("tiny-koala-700m")), str)
    assert re.findall("<h4>(.*?)</h4>", html) == ["256 × 256 px", "128 × 128 px", "256 × 256 px, 2 pictures at once"]


def test_whatever_a_name_or_a_device_holds_is_escaped():
    late = {"model": "x", "preset": "<i>", "size": 64, "images": 1, "reason": "<script>alert(1)</script>"}
    html = bench_chart.panel(report(row(), skipped=(late,)), lambda name: f"<img src=x onerror=alert(1)>{name}")
    assert "<img" not in html and "<script" not in html and "<b>CPU" not in html and "<i>," not in html
    assert "<script" not in status("<script>")


def test_an_unmeasured_matrix_says_why():
    late = {"model": "tiny-sdxl", "preset": "quality", "size": 64, "images": 1, "reason": "not reached within 9 s"}
    assert "not reached within 9 s" in bench_chart.panel(report(skipped=(late,)), str)
    assert bench_chart.EMPTY in bench_chart.panel(report(), str)


def test_the_command_for_a_terminal_measures_the_same():
    matrix = Matrix(models=("tiny-sdxl",), sizes=(64, 128), presets=("quality", "stock"), steps=3, time_limit=60)
    words = shlex.split(command(matrix, [find(name) for name in matrix.models]))
    args = parser().parse_args(words[3:])
    again = Matrix(
        models=tuple(args.models),
        sizes=tuple(args.sizes),
        batch=tuple(args.batch),
        presets=tuple(args.presets),
        steps=args.steps,
        repeats=args.repeats,
        time_limit=args.time_limit,
    )
    assert again == matrix


def test_the_command_cuts_what_only_the_app_has_and_no_folder_that_is_there(tmp_path):
    folder = str(tmp_path / "cut")
    compress("tiny-sdxl", "koala-700m", Path(folder))
    matrix = Matrix(models=(folder,), sizes=(64,))
    assert command(matrix, [find(folder)]).startswith(f"python -m koala bench --models {folder} ")
    ours = replace(find(folder), name="tiny-cut")
    cut = f"python -m koala compress --teacher tiny-sdxl --spec {ours.spec.notation} --out tiny-cut && "
    assert command(replace(matrix, models=("tiny-cut",)), [ours]).startswith(cut + "python -m koala bench")


def test_only_models_of_this_machine_are_offered(tab):
    names = [name for _, name in tab.choices()]
    assert {"tiny-sdxl", "tiny-koala-1b", "tiny-koala-700m"} <= set(names)
    assert tab.models.value == list(PAIR)
    assert tab.sizes.value == [128, 256]


def running(tab, models=("tiny-koala-700m",), page=Visitor, **change):
    """Every update after Start, by the component's name."""
    given = {"sizes": [128], "presets": ["quality"], "batch": [1], "steps": 2, "repeats": 1, "limit": 60} | change
    return (named(tab, update) for update in tab.run(page, list(models), *given.values()))


class Other:
    session_hash = "two"


def test_start_answers_before_the_device_is_free_and_stop_leaves_the_line(tab):
    """Symptom: behind another visitor's run, Start showed nothing."""
    ahead = running(tab, repeats=50, steps=20)
    while "run 1 of 50" not in str(next(ahead).get("status")):
        pass
    shown = running(tab, page=Other)
    first = next(shown)
    assert first["status"] == status("Starting", running=True) and not first["start"].interactive
    assert "Waiting: 1 before you" in next(shown)["status"] and len(tab.session.device.line) == 2
    tab.halt(Other)
    (last,) = shown
    assert last["status"] == status("Stopped.") and last["start"].interactive and len(tab.session.device.line) == 1
    ahead.close()


def test_stop_ends_a_benchmark_and_the_next_one_waits_for_its_last_step(tab):
    """Symptom: a run was closed from outside while its page said that it had stopped, and Start was not heard."""
    texts = []
    for shown in running(tab, repeats=50, steps=20):
        texts.append(shown["status"] if isinstance(shown.get("status"), str) else "")
        if "run 1 of 50" in texts[-1]:
            tab.halt(Visitor)
    assert "Stopped." in texts[-1] and shown["start"].interactive
    assert list(running(tab))[-1]["status"] == status("Done.")


def test_a_run_ends_at_its_limit_and_keeps_what_it_measured(tab):
    begun = time.monotonic()
    shown = running(tab, repeats=50, steps=4, limit=3, presets=["quality", "stock"])
    *_, last, done = [s for s in shown if "panel" in s or s["status"] == status("Done.")]
    took = time.monotonic() - begun
    print(f"{took:.2f} s of 3")
    assert took < 6 and 'class="kb-row"' in last["panel"] and done["start"].interactive


def test_the_longest_single_run_is_cut_at_the_limit(tab, monkeypatch):
    """Symptom: a run that the prediction took for a short one held the device until it was done."""
    monkeypatch.setattr("koala.benchmark.measure._Cell.predict", lambda cell, hardware: Short)
    shown, begun = running(tab, steps=150, limit=1), time.monotonic()
    *_, last, done = [s for s in shown if "panel" in s or s["status"] == status("Done.")]
    assert time.monotonic() - begun < 4 and "not reached within 1 s" in last["panel"]


class Short:
    total_ms = 1.0


def test_more_models_than_the_list_allows_are_refused(tab):
    """Gradio does not hold a request to its own max_choices."""
    with pytest.raises(gr.Error, match="at most 4 models"):
        next(running(tab, list(CARDS)[: MAX_MODELS + 1]))


def test_where_a_gpu_is_only_lent_the_page_says_so_from_the_beginning_and_start_is_off(tab):
    """Symptom: on ZeroGPU the tab said only after Start, and a wait in the line, that it cannot measure there."""
    with gr.Blocks():
        lent = Bench(Session(local=False, wrap=lambda draw: draw))
    assert "A benchmark needs a GPU for longer" in lent.status.value and "at home" in lent.status.value
    assert "on your own machine" in lent.panel.value and "python" not in lent.panel.value
    assert not lent.start.interactive and not lent.stop.interactive
    with pytest.raises(gr.Error, match="at home"):
        next(running(lent))
    assert not len(lent.active)
    assert tab.start.interactive and tab.stop.interactive and tab.status.value == status("")


@pytest.fixture(scope="module")
def tab():
    session = Session(device="cpu").start()
    with gr.Blocks():
        yield Bench(session)
    while not session.loader.settled:  # a process must not end in the middle of loading
        time.sleep(0.05)


@pytest.fixture
def page(chromium, app, request):
    viewport = getattr(request, "param", DESKTOP)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        page = browser.new_page(viewport=viewport)
        errors = []
        page.on("console", lambda m: errors.append(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda e: errors.append(str(e)))
        page.set_default_timeout(90_000)
        page.goto(app.url)
        page.get_by_role("tab", name="Benchmark").click()
        page.get_by_role("button", name="Start").wait_for()
        yield page
        browser.close()
        assert errors == []


def small(page) -> None:
    """One model's pictures of one small size, two steps, one run."""
    page.get_by_label("256 px").uncheck()
    for label, value in (("Steps", "2"), ("Runs", "1")):
        field = page.locator(".kb-panes").get_by_label(label, exact=True)
        field.fill(value)
        field.blur()


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize("page", [PHONE], indirect=True)
def test_a_visitor_measures_and_takes_the_json_home(page):
    small(page)
    page.get_by_label("stock", exact=True).check()
    begin(page)
    expect(page.locator("#kb-status")).to_have_text("Done.", timeout=120_000)
    assert page.locator(".kb-row").count() == page.locator("#kb-panel tbody tr").count() == 4
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Download as JSON").click()
    saved = json.loads(waiting.value.path().read_text())
    assert [(r["model"], r["preset"]) for r in saved["rows"]] == [
        (model, preset) for preset in ("quality", "stock") for model in PAIR
    ]
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")


def begin(page) -> None:
    """Press Start, once."""
    page.locator("#kb-start").click()
    page.locator(".kb-status[data-running=true]").wait_for(timeout=15_000)


def begin_a_long_one(page) -> None:
    runs = page.locator(".kb-panes").get_by_label("Runs", exact=True)
    runs.fill("50")
    runs.blur()
    begin(page)
    expect(page.locator("#kb-status")).to_contain_text("of 50", timeout=90_000)


def stop(page) -> None:
    page.locator("#kb-stop").click()
    expect(page.locator("#kb-status")).to_have_text("Stopped.", timeout=30_000)


@pytest.mark.browser
def test_stop_ends_a_benchmark_and_another_can_start(page):
    """Symptom: after Stop the first presses of Start were not heard."""
    small(page)
    begin_a_long_one(page)
    stop(page)
    small(page)
    begin(page)
    expect(page.locator("#kb-status")).to_have_text("Done.", timeout=120_000)
    assert page.locator(".kb-row").count() == 2


@pytest.mark.slow
@pytest.mark.browser
def test_a_benchmark_behind_another_visitors_waits_in_sight(page):
    """Symptom: Start showed nothing while somebody else's run had the device."""
    second = page.context.browser.new_page()
    second.goto(page.url)
    second.get_by_role("tab", name="Benchmark").click()
    small(page)
    begin_a_long_one(page)
    small(second)
    begin(second)
    expect(second.locator("#kb-status")).to_contain_text("Waiting: 1 before you")
    expect(second.locator("#kb-start")).to_be_disabled()
    stop(second)
    begin(second)
    expect(second.locator("#kb-status")).to_contain_text("Waiting: 1 before you")
    stop(page)
    expect(second.locator("#kb-status")).to_have_text("Done.", timeout=120_000)
    assert second.locator(".kb-row").count() == 2 and second.locator("#kb-start").is_enabled()
    assert page.locator("#kb-start").is_enabled()


@pytest.mark.slow
@pytest.mark.browser
def test_a_benchmark_that_fails_says_why_and_gives_start_back(page):
    page.get_by_role("tab", name="Architecture").click()
    page.locator(".ka-compress").click()
    cut = page.locator(".ka-made li", has_text="Tiny KOALA-700M")  # other tests may have made others
    cut.wait_for()
    folder, title = cut.locator("code").inner_text(), cut.locator("b").inner_text()
    page.get_by_role("tab", name="Benchmark").click()
    small(page)
    page.get_by_role("combobox", name="Models", exact=True).click()
    page.get_by_role("option", name=title).click()
    weights = Path(folder) / "unet" / "diffusion_pytorch_model.safetensors"
    aside = weights.rename(weights.with_suffix(".aside"))
    try:
        page.locator("#kb-start").click()
        expect(page.get_by_test_id("toast-text").first).to_contain_text("diffusion_pytorch_model", timeout=60_000)
        expect(page.locator("#kb-status")).to_contain_text("diffusion_pytorch_model")
        assert page.locator("#kb-start").is_enabled()
    finally:
        aside.rename(weights)  # the app is everybody's


@pytest.mark.browser
def test_a_matrix_that_is_empty_is_answered(page):
    page.get_by_label("quality", exact=True).uncheck()
    page.get_by_role("button", name="Start").click()
    expect(page.get_by_test_id("toast-text").first).to_contain_text("at least one of its presets")
